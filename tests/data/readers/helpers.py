"""What all reader tests need: a source made of local files, and a read that keeps the books."""

from collections import Counter
from pathlib import Path

from x2vlm.data.readers import READERS, Source
from x2vlm.samples import Drop, Sample, count_rules


def source(name: str = "test", **files: Path) -> Source:
    """Files by role, under a card called like the source."""
    return Source(card=f"{name}_card", name=name, split="train", files=files, licence="card licence")


def read(reader: str, given: Source) -> tuple[list[Sample], list[Drop]]:
    """All samples and drops, after checking that nothing the files hold got lost."""
    seen: Counter[str] = Counter()
    items = list(READERS[reader](given, seen))
    samples = [item for item in items if isinstance(item, Sample)]
    drops = [item for item in items if isinstance(item, Drop)]
    assert seen["rows"] == len(samples) + sum(count_rules(drops, "row").values())
    assert seen["concepts"] == sum(len(s.concepts) for s in samples) + sum(count_rules(drops, "concept").values())
    if seen["captions"]:
        assert seen["captions"] == sum(len(s.captions) for s in samples) + sum(count_rules(drops, "caption").values())
    assert len({sample.key for sample in samples}) == len(samples)
    return samples, drops


def rules(drops: list[Drop]) -> list[tuple[str, str, str, str]]:
    """(row, unit, item, rule) of every drop, in order."""
    return [(drop.source_row, drop.unit, drop.item, drop.rule) for drop in drops]
