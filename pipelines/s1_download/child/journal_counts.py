"""Progress of the children of a part, read from their journals while they are written."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipelines.flow.live import Counters


class JournalTail:
    """Rows done so far, by outcome. Each read continues where the last one stopped.

    An item counts once, by its last journal line, with all rows that wait for it (`rows_of_item`).
    """

    def __init__(self, rows_of_item: Mapping[int, int], already_decided: Mapping[str, int]) -> None:
        """`already_decided`: rows by rule that need no fetching."""
        self._rows_of_item = rows_of_item
        self._decided = Counter(already_decided)
        self._status: dict[int, str] = {}
        self._bytes: dict[int, int] = {}
        self._offsets: Counter[Path] = Counter()

    def read(self, journal: Path) -> None:
        """Read the new complete lines of a journal. A journal that does not exist yet has none."""
        try:
            with journal.open("rb") as file:
                file.seek(self._offsets[journal])
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[journal] += len(whole)
        for line in whole.splitlines():
            if result := json.loads(line).get("finished"):
                self._status[result["id"]] = result["status"]
                self._bytes[result["id"]] = result["bytes"]

    def counters(self) -> Counters:
        """`rows`, `kept`, `bytes` and `dropped.<rule>`; rows that the parent drops later still count as kept here."""
        by_status = Counter(self._decided)
        for item, status in self._status.items():
            by_status[status] += self._rows_of_item.get(item, 0)
        kept = by_status.pop("kept", 0)
        drops = {f"dropped.{rule}": float(number) for rule, number in sorted(by_status.items())}
        rows = float(kept + sum(by_status.values()))
        return {"rows": rows, "kept": float(kept), "bytes": float(sum(self._bytes.values())), **drops}
