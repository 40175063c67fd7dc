"""The protocol of parent and child of a download: one job file, one journal of lines."""

import json
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.http.guard import Policy
from x2vlm.samples import Media

JOB_NAME, JOURNAL_NAME, PAYLOADS_NAME = "job.json", "journal.jsonl", "payloads"
OUT_OF_MEMORY_STATUS = 77  # exit status of a child whose Python ran out of memory: treated like death by a signal
GAVE_UP_STATUS = 78  # of a process that ended itself because an item, which has its result, would never end


@dataclass(frozen=True, order=True)
class Place:
    """Bytes of a local file."""

    path: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class Item:
    """One thing to fetch: an image, or a clip of a video. `url` is the URL that is requested; where there is a `place`,
    the bytes are taken from there and `url` only says what they are."""

    id: int
    kind: str
    url: str
    start_seconds: float | None = None
    end_seconds: float | None = None
    hashes: tuple[str, ...] = ()  # algorithms of the hashes published for its rows
    place: Place | None = None


@dataclass(frozen=True)
class Stored:
    """The place of an item's stored bytes: a length and an offset in a file of payloads."""

    path: str
    offset: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Result:
    """The result of an item. `status` is "kept", and then there are media and stored bytes, or a rule."""

    id: int
    status: str
    reason: str = ""
    final_url: str = ""
    http_status: int = 0
    content_type: str = ""
    opt_out: str = ""
    robots: str = ""
    fetched_at: str = ""
    bytes: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)  # of the bytes as fetched: algorithm -> hex
    media: Media | None = None
    stored: Stored | None = None


def write_job(folder: Path, config: DownloadConfig, policy: Policy, items: Sequence[Item]) -> None:
    """Write the job of a child into `folder`."""
    # A dump omits fields that are excluded from fingerprints, but the child needs them.
    values = {name: getattr(config, name) for name, field in DownloadConfig.model_fields.items() if field.exclude}
    values |= config.model_dump(mode="json")
    job = {"config": values, "policy": asdict(policy), "items": [asdict(item) for item in items]}
    (folder / JOB_NAME).write_text(json.dumps(job), encoding="utf-8")


def read_job(folder: Path) -> tuple[DownloadConfig, Policy, list[Item]]:
    """The job that `write_job` wrote."""
    job = json.loads((folder / JOB_NAME).read_text(encoding="utf-8"))
    policy = Policy(
        tuple(job["policy"]["allowed_networks"]),
        tuple(job["policy"]["allowed_ports"]),
        tuple((address, port) for address, port in job["policy"]["allowed_endpoints"]),
    )
    return DownloadConfig.model_validate(job["config"]), policy, [_item(values) for values in job["items"]]


def _item(values: Mapping[str, Any]) -> Item:
    place = values["place"]
    return Item(**{**values, "hashes": tuple(values["hashes"]), "place": place and Place(**place)})


class Journal:
    """Lines that survive the death of the process that writes them: each is one write to a file opened for append."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def started(self, item_ids: Collection[int]) -> None:
        """Record that work on these items begins, so that a crash can be traced to them."""
        self._write(f'{{"started": {list(item_ids)}}}')  # Python writes numbers as JSON does

    def finished(self, result: Result) -> None:
        """Record the result of an item."""
        # asdict() would copy everything: 30 us a line, and as much again for its media.
        parts = {name: value and vars(value) for name, value in (("media", result.media), ("stored", result.stored))}
        self._write(json.dumps({"finished": {**vars(result), **parts}}))

    def _write(self, line: str) -> None:
        os.write(self._descriptor, line.encode() + b"\n")


class PayloadFile:
    """Stored bytes, concatenated in one file and each once. Thread-safe.

    No result refers to bytes that a killed process had written in part.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._stream = path.open("ab", buffering=0)
        self._by_sha256: dict[str, Stored] = {}
        self._lock = threading.Lock()

    def store(self, payload: bytes, sha256: str) -> Stored:
        """Append `payload`, whose hash is `sha256`; returns its place."""
        with self._lock:
            if sha256 not in self._by_sha256:
                offset, left = self._stream.tell(), memoryview(payload)
                while left:
                    left = left[self._stream.write(left) :]
                self._by_sha256[sha256] = Stored(self._path, offset, len(payload), sha256)
            return self._by_sha256[sha256]


def read_journal(path: Path) -> tuple[dict[int, Result], set[int]]:
    """Results by item id, and the items that were begun and not finished. An incomplete last line is ignored."""
    results: dict[int, Result] = {}
    started: set[int] = set()
    if not path.exists():
        return results, started
    for line in path.read_bytes().decode("ascii").split("\n")[:-1]:
        event = json.loads(line)
        if "started" in event:
            started.update(event["started"])
        else:
            values = event["finished"]
            media, stored = values.pop("media"), values.pop("stored")
            results[values["id"]] = Result(**values, media=media and Media(**media), stored=stored and Stored(**stored))
    return results, started - set(results)
