"""Counts of media by licence for the manifest; the licence of each row is in the rows and in the ledger."""

from collections import Counter
from collections.abc import Mapping

MAX_LICENCES = 30  # LAION's column is free text: rarer ones are counted together to keep the manifest small
UNKNOWN, OTHER = "(unknown)", "(other)"


def licence_counts(licences: Mapping[str, int]) -> dict[str, int]:
    """Rows by licence, the most frequent first; the total is unchanged.

    "" counts as UNKNOWN, licences after the first MAX_LICENCES as OTHER.
    """
    counts: Counter[str] = Counter()
    for licence, number in licences.items():
        counts[licence or UNKNOWN] += number
    other = counts.pop(OTHER, 0)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    other += sum(number for _, number in ordered[MAX_LICENCES:])
    return dict(ordered[:MAX_LICENCES]) | ({OTHER: other} if other else {})
