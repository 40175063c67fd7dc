"""The conservation law: everything that came in went on or was dropped."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from x2vlm.errors import StageFailed


@dataclass(frozen=True)
class Count:
    """The conservation law of one unit (rows, concepts, ...): everything that came in went on or was dropped."""

    num_in: int
    num_out: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def check(self, where: str) -> None:
        """Raise StageFailed unless in = out + sum of dropped."""
        total = self.num_out + sum(self.dropped.values())
        if total != self.num_in or min([self.num_in, self.num_out, *self.dropped.values()]) < 0:
            raise StageFailed(
                f"{where}: {self.num_in} in, but {self.num_out} out + {sum(self.dropped.values())} dropped = {total}. "
                "The stage loses or invents rows; this is a bug in the stage, please report it"
            )

    def __add__(self, other: "Count") -> "Count":
        reasons = sorted({*self.dropped, *other.dropped})
        dropped = {reason: self.dropped.get(reason, 0) + other.dropped.get(reason, 0) for reason in reasons}
        return Count(self.num_in + other.num_in, self.num_out + other.num_out, dropped)
