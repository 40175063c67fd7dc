"""What a part says of itself while it runs: growing counters, on their way from any machine to whoever watches.

This is a view and nothing else. No result, count or fingerprint depends on it; a report that is lost is lost.
"""

from collections.abc import Callable, Mapping

Counters = Mapping[str, float]
Listener = Callable[[str, str, Counters], None]  # (node, part, counters)

# Takes a function that counts, which is not called where nobody listens. A part calls it about once a second. Counters
# grow; `rows`, `kept`, `bytes` and `dropped.<rule>` mean the same for every stage, others are shown as they are. A
# training tells its `step` of `steps`, and how it stands: `loss`, `texts_per_second`, `steps_per_second`.
Report = Callable[[Callable[[], Counters]], None]


def no_report(count: Callable[[], Counters]) -> None:
    """The report of a part that nobody watches."""
