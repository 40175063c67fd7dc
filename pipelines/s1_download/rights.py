"""Under which licences the media came: counts for the manifest. Row by row it is in the rows and in the ledger."""

from collections import Counter
from collections.abc import Mapping

MAX_LICENCES = 30  # LAION's column is free text: what is rarer is counted together, so that a manifest stays small
UNKNOWN, OTHER = "(unknown)", "(other)"


def licence_counts(licences: Mapping[str, int]) -> dict[str, int]:
    """Rows by licence, the most frequent first; all of them add up to those given.

    "" counts as UNKNOWN, licences behind the first MAX_LICENCES as OTHER.
    """
    counts: Counter[str] = Counter()
    for licence, number in licences.items():
        counts[licence or UNKNOWN] += number
    other = counts.pop(OTHER, 0)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    other += sum(number for _, number in ordered[MAX_LICENCES:])
    return dict(ordered[:MAX_LICENCES]) | ({OTHER: other} if other else {})
