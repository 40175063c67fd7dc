"""Lineage of a run of the graph: events become spool lines at once, and MLflow runs as soon as MLflow can take them.

The driver never talks to MLflow. It appends to the spool and nudges a second process, the sink, which delivers; a
server that is dead, slow or answers 500 therefore costs the run nothing but a bounded wait at its end. What was not
delivered is delivered by the next run, or by `replay`. Manifests are the truth: `rebuild` makes MLflow from them.
"""

import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from pipelines.flow.lineage.facts import Cache, LineageRecord, NodeFacts, facts_of, is_model
from pipelines.flow.lineage.sink_process import LIVE_SECONDS, STOP_SECONDS, SinkProcess
from pipelines.flow.lineage.spool import Spool, spools
from pipelines.flow.run import events
from pipelines.flow.safe_text import safe
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.identity import this_process
from pipelines.flow.store.store import Store
from x2vlm.errors import ConfigError, X2VLMError

log = logging.getLogger(__name__)

GRACE_SECONDS = 60.0  # how long the end of a run waits for the sink

# tag of the job's run -> key of the provenance
_PROVENANCE_TAGS = {
    "x2.git_sha": "git_sha",
    "x2.git_dirty": "git_dirty",
    "x2.ray_job_id": "ray_job_id",
    "x2.submission_id": "submission_id",
    "x2.image": "image",
    "x2.argv": "argv",
    "x2.python": "python",
}


def new_dag_run() -> str:
    """A new name for one run of the graph: UTC time and eight random hex digits, so that names sort by time."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"


def default_tracking_uri(store: Store) -> str:
    """An MLflow database inside a local store; ConfigError for a remote store, which cannot hold one."""
    root = store.blobs.local_root
    if root is None:
        raise ConfigError(f"store {store.uri} is remote: say where MLflow is with --tracking-uri http://HOST:PORT")
    return f"sqlite:///{root}/mlflow.db"


class Lineage:
    """Spools the events of one run of the graph. Pass it as `on_event`; use it through `lineage()`."""

    def __init__(
        self, store: Store, experiment: str, dag_run: str, start_sink: Callable[[], SinkProcess] | None = None
    ) -> None:
        self.store, self.experiment, self.dag_run = store, experiment, dag_run
        self.sink: SinkProcess | None = None
        self._start_sink = start_sink
        self.spool = Spool(store, dag_run)
        self.started_ms: dict[str, int] = {}
        self.live_keys: dict[str, str] = {}  # fingerprints of started nodes whose numbers are sent while they run
        self.seen: set[str] = set()  # nodes finished in this run
        self.models: set[str] = set()  # those of them that made a model
        self.tags: dict[str, str] = {}
        self.finished = False

    def __call__(self, event: events.Event) -> None:
        """Spool `event`. Never raises for a store that refuses: lineage of this run is then left to `rebuild`."""
        record = self._record_of(event)
        if record is None:
            return
        self.finished = self.finished or record.type == "run_finished"
        try:
            self.spool.append(record)
        except (OSError, X2VLMError) as error:
            log.error("event=spool_failed dag_run=%s record=%s error=%r", self.dag_run, record.run_key, str(error))
            return
        if self.sink is None and self._start_sink is not None:  # a driver that finds the plan busy starts none
            self.sink = self._start_sink()
        if self.sink:
            self.sink.notify()

    def close(self, grace_seconds: float) -> bool:
        """Wait up to `grace_seconds` for the last delivery; True if MLflow has everything."""
        return self.sink is None or self.sink.close(grace_seconds)

    def _record_of(self, event: events.Event) -> LineageRecord | None:
        time_ms = int(event.time * 1000)
        base = LineageRecord(
            type="run_started", dag_run=self.dag_run, experiment=self.experiment, time_ms=time_ms, tags=self.tags
        )
        match event:
            case events.RunStarted():
                self.tags = run_tags(event.plan_fingerprint, event.targets, event.provenance)
                return base.model_copy(update={"tags": self.tags})
            case events.NodeStarted():
                self.started_ms[event.node] = time_ms
                if event.live_series:
                    self.live_keys[event.node] = event.fingerprint
                fields = {"type": "node_started", "live_series": event.live_series}
                return base.model_copy(update={"node": event.node, **self._times(event.node, time_ms), **fields})
            case events.NodeFinished():
                return base.model_copy(update=self._finished_fields(event, time_ms))
            case events.NodeFailed():
                where = f"part {event.part}: " if event.part else ""
                fields = {"type": "node_failed", "status": "FAILED", "message": safe(f"{where}{event.error}")}
                return base.model_copy(update={"node": event.node, **self._times(event.node, time_ms), **fields})
            case events.NodeBlocked():
                fields = {"type": "node_blocked", "status": "KILLED", "message": f"blocked by {event.by}"}
                return base.model_copy(update={"node": event.node, **self._times(event.node, time_ms), **fields})
            case events.RunFinished():
                status = "FINISHED" if event.ok else "FAILED"
                return base.model_copy(
                    update={"type": "run_finished", "status": status, "message": safe(event.error or "")}
                )
        return None

    def _finished_fields(self, event: events.NodeFinished, time_ms: int) -> dict[str, Any]:
        self.seen.add(event.node)
        if is_model(event.manifest):
            self.models.add(event.node)
        cache: Cache = "hit" if not event.produced else ("forced" if event.forced else "miss")
        return {
            "type": "node_finished",
            "status": "FINISHED",
            "node": event.node,
            "cache": cache,
            "facts": self._facts(event.manifest, event.manifest_path, event.manifest_sha256),
            **self._times(event.node, time_ms),
        }

    def _facts(self, manifest: Manifest, path: str, sha256: str) -> NodeFacts:
        return facts_of(
            manifest, path, sha256, self.store.uri, self.models | model_inputs(self.store, manifest, self.seen)
        )

    def _times(self, node: str, time_ms: int) -> dict[str, Any]:
        """When the node started, and under which fingerprint its numbers are sent while it runs."""
        return {"started_ms": self.started_ms.get(node, time_ms), "live_key": self.live_keys.get(node, "")}


def model_inputs(store: Store, manifest: Manifest, seen: Collection[str] = ()) -> set[str]:
    """Keys of those inputs of `manifest` that are models; manifests of nodes in `seen` are not opened again."""
    models = set()
    for item in manifest.inputs:
        if item.node in seen:
            continue
        if item.manifest_path and (found := store.read_manifest(item.manifest_path)) and is_model(found[0]):
            models.add(item.node)
    return models


def run_tags(plan_fingerprint: str, targets: tuple[str, ...], provenance: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a job: which plan, from which code, started as what."""
    tags = {
        "x2.plan_sha": plan_fingerprint,
        "x2.targets": ",".join(targets) or "all",
        "x2.driver": this_process().token,
    }
    for tag, key in _PROVENANCE_TAGS.items():
        value = provenance.get(key)
        tags[tag] = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return tags


@contextlib.contextmanager
def lineage(
    store: Store,
    experiment: str,
    tracking_uri: str | None = None,
    dag_run: str | None = None,
    grace_seconds: float = GRACE_SECONDS,
    live_seconds: float = LIVE_SECONDS,
) -> Iterator[Lineage]:
    """The `on_event` of a run of the graph; at the end waits up to `grace_seconds` until MLflow has everything.

    What running nodes measure (`Stage.live_series`) reaches MLflow every `live_seconds`.

    Undelivered records stay in the spool and are logged as a warning; they never fail the run.
    """
    uri = tracking_uri or default_tracking_uri(store)
    run = dag_run or new_dag_run()
    recorder = Lineage(store, experiment, run, lambda: SinkProcess(store, run, uri, live_seconds))
    try:
        yield recorder
    except Exception:
        recorder.close(grace_seconds)
        raise
    except BaseException:  # told to stop: what MLflow lacks the next run brings
        recorder.close(STOP_SECONDS)
        raise
    else:
        recorder.close(grace_seconds)


def deliver_pending(store: Store, tracking_uri: str | None = None, grace_seconds: float = GRACE_SECONDS) -> bool:
    """Bring what earlier runs could not deliver, if there is anything; True if nothing is left or another does it.

    For a command that adds no records: MLflow is neither asked nor waited for where it has everything.
    """
    uri = tracking_uri or default_tracking_uri(store)
    if all(spool.is_settled(uri) for spool in spools(store)):
        return True
    return SinkProcess(store, new_dag_run(), uri).close(grace_seconds)


def replay(store: Store, tracking_uri: str | None = None) -> int:
    """Number of records delivered: everything in the store's spools that this MLflow does not have yet.

    Raises what the delivery raises; spools that another process is delivering right now are left to it.
    """
    from pipelines.flow.lineage.delivery import Delivery  # seconds of imports that no other path here needs

    uri = tracking_uri or default_tracking_uri(store)
    total = 0
    for spool in spools(store):
        with spool.exclusive() as mine:
            if mine:
                total += Delivery(store, uri, spool).deliver()
    return total


def rebuild(store: Store, experiment: str, tracking_uri: str | None = None) -> int:
    """Number of nodes told to MLflow from manifests alone: an empty MLflow then answers every question about lineage.

    Spools are delivered first, so runs keep their history; manifests that no spool tells of (older, adopted, spool
    lost) follow as runs tagged `x2.rebuilt`. Doing it again changes nothing.
    """
    uri = tracking_uri or default_tracking_uri(store)
    for spool in spools(store):
        spool.mark_delivered(uri, 0)  # this MLflow may have been emptied since
    replay(store, uri)
    dag_run = f"00000000T000000-rebuild-{experiment}"
    recorder = Lineage(store, experiment, dag_run)
    spool = recorder.spool
    known = {record.facts.manifest_sha256 for told in spools(store) for record in told.read() if record.facts}
    missing = [found for found in reachable(store, experiment) if found[2] not in known]
    if missing and not spool.read():
        recorder(events.RunStarted(experiment=experiment, plan_fingerprint="", targets=(), nodes=(), provenance={}))
    for manifest, path, sha256 in missing:
        recorder(_as_reused(manifest, path, sha256))
    if missing:
        recorder(events.RunFinished(ok=True, error=None, seconds=0.0))
    replay(store, uri)
    return len(missing)


def _as_reused(manifest: Manifest, path: str, sha256: str) -> events.NodeFinished:
    return events.NodeFinished(
        time=_finished_at(manifest),
        node=manifest.node,
        action=events.Action.REUSE,
        produced=False,
        forced=False,
        manifest=manifest,
        manifest_path=path,
        manifest_sha256=sha256,
        seconds=0.0,
    )


def _finished_at(manifest: Manifest) -> float:
    """When a manifest says it was made, in seconds since 1970; now, if it does not say."""
    try:
        return datetime.fromisoformat(str(manifest.provenance["finished_at"])).timestamp()
    except (KeyError, ValueError):
        return time.time()


def reachable(store: Store, experiment: str) -> list[tuple[Manifest, str, str]]:
    """Every manifest that an experiment's references lead to, with path and seal; producers before consumers."""
    found: dict[str, tuple[Manifest, str, str]] = {}

    def visit(path: str) -> None:
        if path in found:
            return
        stored = store.read_manifest(path)
        if stored is None:
            raise ConfigError(f"{store.uri_of(path)} is referred to but absent; run the audit for what else is missing")
        for item in stored[0].inputs:
            if item.manifest_path:
                visit(item.manifest_path)
        found[path] = (stored[0], path, stored[1])

    for ref in store.refs_of_experiment(experiment):
        visit(ref.manifest_path)
    return list(found.values())
