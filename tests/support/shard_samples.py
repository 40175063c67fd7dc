"""Small samples with real bytes, for tests of shards and of the stages around them."""

import hashlib
from dataclasses import replace

import pyarrow as pa

from x2vlm.samples import Box, Caption, Concept, Fetch, Grain, Media, Sample, sample_key, sample_table

DOG = Concept(Grain.OBJECT, "dog", Box(1.0, 2.0, 3.5, 4.0), ("brown",), "a1")


def payload(number: int) -> bytes:
    """Distinct bytes that stand for media; their length is no multiple of a tar block."""
    return f"media {number} ".encode() * (50 + number)


def make_sample(number: int, kind: str = "image", stored: str = "jpeg", source: str = "toy") -> Sample:
    """Sample `number` of a source: its media are `payload(number)`, row 3 has no caption, even rows have a concept."""
    data = payload(number)
    return Sample(
        key=sample_key(source, str(number)),
        source=source,
        source_row=str(number),
        split="train",
        kind=kind,
        url=f"http://sample.invalid/{number}",
        captions=() if number == 3 else (Caption(f"caption {number} ünï"), Caption("second")),
        concepts=(DOG, replace(DOG, grain=Grain.REGION, text="a dog on grass")) if number % 2 == 0 else (),
        media=Media(kind, hashlib.sha256(data).hexdigest(), len(data), 64, 48, stored),
        fetch=Fetch(f"http://sample.invalid/{number}", 200, "image/jpeg"),
    )


def scored(samples: list[Sample], scores: list[float | None] | None = None) -> pa.Table:
    """Samples with a clip score each (default: none)."""
    column = pa.array(scores or [None] * len(samples), pa.float32())
    return sample_table(samples).append_column("clip_score", column)


def payloads(samples: list[Sample]) -> dict[str, bytes]:
    """Media bytes by sha256."""
    return {sample.media.sha256: payload(int(sample.source_row)) for sample in samples if sample.media}
