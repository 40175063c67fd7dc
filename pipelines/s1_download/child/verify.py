"""Checks of the fetched bytes against published hashes, and against known placeholder images.

The buyer of an expired domain controls the images of a list of URLs (arXiv 2302.10149: 0.01 % of LAION-400M for 60
US$). Where a source publishes hashes, the bytes as fetched are compared with them, before metadata are stripped. A
mismatch alone proves nothing, because many servers have re-encoded their images since: about 15 % of LAION's differ.
So it is recorded, and dropped only if the experiment says so; `domains.py` examines whole domains.
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from pipelines.s1_download.child.protocol import Item, Result
from pipelines.s1_download.config import HashMismatch
from x2vlm.samples import Media, Sample

MATCH, MISMATCH, UNPUBLISHED = "match", "mismatch", "unpublished"
NO_BODY = ""  # a hash is published, but no complete body was received


def wanted_hashes(published: Iterable[str]) -> tuple[str, ...]:
    """The algorithms in which these hashes are published, sorted."""
    return tuple(sorted({text.partition(":")[0] for text in published if text}))


def body_hashes(item: Item, body: bytes, media: Media | None) -> dict[str, str]:
    """Algorithm -> hex digest of `body`: the algorithms published for its rows, and always the sha256 of an image.

    `media` saves hashing an image again. The sha256 of a video costs 0.5 s per GB and is computed only if compared.
    """
    hashes = {name: hashlib.new(name, body, usedforsecurity=False).hexdigest() for name in item.hashes if name == "md5"}
    if item.kind == "image" and media is not None:
        hashes["sha256"] = media.sha256
    elif item.kind == "image" or "sha256" in item.hashes:
        hashes["sha256"] = hashlib.sha256(body).hexdigest()
    return hashes


def hash_check(published: str, result: Result) -> str:
    """match, mismatch, unpublished, or NO_BODY."""
    algorithm, _, digest = published.partition(":")
    if not digest:
        return UNPUBLISHED
    if algorithm not in result.hashes:
        return NO_BODY
    return MATCH if result.hashes[algorithm] == digest else MISMATCH


def judge(sample: Sample, result: Result, hash_mismatch: HashMismatch, placeholders: Collection[str]) -> Result:
    """`result`, or a refusal instead: a known placeholder, or bytes that do not match the published hash."""
    if result.media is None:
        return result
    if result.hashes.get("sha256") in placeholders:
        reason = f"sha256 {result.hashes['sha256']} is on the list of pictures that stand for none"
        return replace(result, status="placeholder", reason=reason, media=None)
    if hash_mismatch == "drop" and hash_check(sample.published_hash, result) == MISMATCH:
        algorithm = sample.published_hash.partition(":")[0]
        reason = f"published {sample.published_hash}, came {algorithm}:{result.hashes[algorithm]}"
        return replace(result, status="hash_mismatch", reason=reason, media=None)
    return result


def judge_all(
    samples: Sequence[Sample], results: Sequence[Result], hash_mismatch: HashMismatch, placeholders: Collection[str]
) -> list[Result]:
    """`judge` of every row."""
    pairs = zip(samples, results, strict=True)
    return [judge(sample, result, hash_mismatch, placeholders) for sample, result in pairs]
