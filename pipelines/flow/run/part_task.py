"""What a worker does with one part: read, run, count, commit. Runs on any machine that sees the store."""

import errno
import logging
import time
import traceback
from dataclasses import dataclass
from typing import Any

import pydantic

from pipelines.flow.live import Report, no_report
from pipelines.flow.safe_text import protect_logs, safe
from pipelines.flow.stage import Part, PartResult, Stage, part_fingerprint
from pipelines.flow.store.artifact import CountRecord, PartRecord, ReadRecord
from pipelines.flow.store.reading import StoreReader
from pipelines.flow.store.scratch import remedy_for
from pipelines.flow.store.store import Store
from x2vlm.errors import LeaseLost, StageFailed, Stopped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartOutcome:
    """A committed record, or what went wrong in plain words: any exception of a stage survives the way home."""

    record: PartRecord | None
    error: str = ""  # "<type>: <message>"
    trace: str = ""  # the original traceback


def try_part(
    store: Store,
    stage: Stage,
    config: pydantic.BaseModel,
    part: Part,
    restore: PartRecord | None,
    forced: bool,
    report: Report = no_report,
) -> PartOutcome:
    """`run_one_part`, with errors as values. KeyboardInterrupt, Stopped, LeaseLost and the like still end the run."""
    protect_logs()
    try:
        return PartOutcome(run_one_part(store, stage, config, part, restore, forced, report))
    except (Stopped, LeaseLost):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if (remedy := remedy_for(error)) is not None:
            name = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
            message = f"{message} ({name}): {remedy}, then rerun the same command. Nothing half-written is visible"
        return PartOutcome(None, safe(message), safe(traceback.format_exc()))


def run_one_part(
    store: Store | str,
    stage: Stage,
    config: pydantic.BaseModel,
    part: Part,
    restore: PartRecord | None = None,
    forced: bool = False,
    report: Report = no_report,
) -> PartRecord:
    """The committed record of a part: made now, or found if somebody else was faster and it is not `forced`.

    `restore` is the record a manifest has of this part, for a part that is gone from the store: equal content comes
    back byte for byte. Raises what the stage raises, and StageFailed if its counts break the conservation law.
    """
    store = store if isinstance(store, Store) else Store(store)
    fingerprint = part_fingerprint(stage, config, part)
    if not forced and (existing := store.read_part(stage.name, fingerprint)) is not None:
        return existing
    writer = store.begin_part(stage.name, fingerprint, report)
    started = time.monotonic()
    try:
        reader = StoreReader(store, writer.inputs_path, part.name)
        result = stage.run_part(config, reader, part, writer)
        _check_counts(stage, part, result)
        seconds = round(time.monotonic() - started, 3)
        record = _record(stage, part, fingerprint, result, seconds)
        committed = store.commit_part(writer, record, result.file_rows, restore, verify_existing=forced)
    finally:
        store.discard(writer)
    rows = committed.counts["rows"]
    log.info(
        "event=part_done stage=%s part=%s fingerprint=%s rows_in=%d rows_out=%d seconds=%.1f",
        *(stage.name, part.name, fingerprint[:12], rows.num_in, rows.num_out, seconds),
    )
    return committed


def _check_counts(stage: Stage, part: Part, result: Any) -> None:
    if not isinstance(result, PartResult):
        raise StageFailed(f"run_part returned {type(result).__name__}, not a PartResult; this is a bug in the stage")
    if "rows" not in result.counts:
        raise StageFailed(f"stage {stage.name} counted {sorted(result.counts)}, but not its rows; this is a bug in it")
    for unit, count in result.counts.items():
        count.check(f"stage {stage.name}, part {part.name}, {unit}")


def reads_of(part: Part) -> list[ReadRecord]:
    """What a part reads, as it is recorded."""
    return [ReadRecord(slot=read.slot, path=read.file.path, sha256=read.file.sha256) for read in part.reads]


def _record(stage: Stage, part: Part, fingerprint: str, result: PartResult, seconds: float) -> PartRecord:
    return PartRecord(
        stage=stage.name,
        version=stage.version,
        fingerprint=fingerprint,
        spec=dict(part.spec),
        reads=reads_of(part),
        files=[],
        counts={unit: CountRecord.of(count) for unit, count in sorted(result.counts.items())},
        summary=dict(result.summary),
        seconds=seconds,
    )
