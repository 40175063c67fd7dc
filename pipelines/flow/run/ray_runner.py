"""Parts as Ray tasks: on a Ray started here, or on the cluster this job was submitted to. The only user of Ray.

Ray schedules, places and retries; a part whose worker died is run again, a part that raised is not (the same input
would raise again, and what is worth retrying the stages retry themselves).
"""

import logging
import os
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.flow.live import Listener, Report, no_report
from pipelines.flow.run.cluster import Cluster, check_room, current_cluster, gpus_of
from pipelines.flow.run.ray_board import CounterRelay, RayReport
from pipelines.flow.stage import Node
from pipelines.flow.store.seen_by_all import SharedFolder
from pipelines.flow.store.store import Store
from pipelines.flow.store.temporary import enter_temporary_home, ray_folder
from pipelines.project import HOME_VARIABLE, PROJECT_ROOT
from x2vlm.errors import ConfigError, StageFailed

log = logging.getLogger(__name__)

# Nobody is told what we do; and Ray, not the libraries, decides how many parts share a machine.
WORKER_ENV = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Ray leaves all GPUs visible to a task that asks for none: 64 of them would crowd the first one.
NO_GPU_ENV = {"CUDA_VISIBLE_DEVICES": ""}
DRIVER_THREADS = 4
START_ATTEMPTS = 3
POLL_SECONDS = 1.0  # between looks at what running parts report


class RayRunner:
    """Submits parts to Ray. Starts a local Ray unless one is initialised or a cluster is given or around us.

    `num_cpus` limits a local Ray. The dashboard stays on there, because Ray Train does not recover lost workers
    without it; `dashboard=False` is for graphs that never train.
    """

    def __init__(self, address: str | None = None, num_cpus: int | None = None, dashboard: bool = True) -> None:
        self._started = not ray.is_initialized()
        self._is_local = False
        if self._started:
            self._is_local = _start(address, num_cpus, dashboard)
        self._threads = ThreadPoolExecutor(DRIVER_THREADS, thread_name_prefix="driver-part")
        self._call = ray.remote(_call)
        self._references: dict[Future[Any], Any] = {}  # kept, or Ray would drop the task's result
        self._relay: CounterRelay | None = None
        self._polled_at = 0.0
        self._cluster: Cluster | None = None
        self._shared: SharedFolder | None = None

    @property
    def cluster(self) -> Cluster:
        """The machines, as they were when first asked for."""
        if self._cluster is None:
            self._cluster = current_cluster(self._is_local)
        return self._cluster

    def prepare(self, nodes: Iterable[Node], store: Store) -> None:
        """Check, before anything runs, that parts of `nodes` have room and that every machine sees a local `store`.

        NotEnoughRoom or ConfigError, with numbers and the remedy, if not.
        """
        check_room(nodes, self.cluster)
        if self._is_local or store.local_root is None:
            return
        if len(self.cluster.hostnames) > 1 or self.cluster.autoscales:
            self._shared = SharedFolder.mark(store.local_root)
            _check_seen(self._shared)

    def submit(self, node: Node, function: Callable[..., Any], *args: Any) -> Hashable:
        """A handle on `function(*args)`, run where its stage and `node.runtime` say."""
        runtime = node.runtime
        if node.stage.on_driver:
            return self._threads.submit(function, *args)
        if self._is_local:  # a cluster may still grow; here a part without room would wait for ever
            check_room([node], self.cluster)
        num_gpus = gpus_of(node, self.cluster)
        task = self._call.options(
            name=node.key,
            num_cpus=runtime.num_cpus,
            num_gpus=num_gpus,
            memory=runtime.memory_bytes or None,
            max_retries=runtime.max_retries,
            retry_exceptions=False,
            runtime_env={"env_vars": worker_env(num_gpus)},
        )
        reference = task.remote(self._shared, function, *args)
        future = cast("Future[Any]", reference.future())
        self._references[future] = reference
        return future

    def wait(self, handles: Sequence[Hashable]) -> Sequence[Hashable]:
        """Those of `handles` that are done; blocks until there is one."""
        futures = cast(Sequence[Future[Any]], handles)
        while True:
            seconds = None if self._relay is None else POLL_SECONDS
            done = wait(futures, seconds, return_when=FIRST_COMPLETED).done
            if self._relay is not None and time.monotonic() >= self._polled_at + POLL_SECONDS:
                self._polled_at = time.monotonic()
                self._relay.poll()
            if done:
                return list(done)

    def listen(self, listener: Listener) -> None:
        """Start the board that carries reports of parts to `listener`; it takes no CPU of the cluster's count."""
        if self._relay is not None:
            self._relay.close()
        self._relay = CounterRelay(listener)

    def reporter(self, node: Node, part: str) -> Report:
        """What a part reports with, on any machine of the cluster."""
        if self._relay is None or self._relay.actor is None:
            return no_report
        return RayReport(self._relay.actor, node.key, part)

    def result(self, handle: Hashable) -> Any:
        """What the function returned. StageFailed if its worker died more often than `max_retries` allows."""
        future = cast("Future[Any]", handle)
        self._references.pop(future, None)
        try:
            return future.result()
        except ray.exceptions.RayTaskError as error:
            raise StageFailed(f"the part could not be run or sent: {error}") from error
        except ray.exceptions.RayError as error:
            raise StageFailed(
                f"its worker died ({type(error).__name__}: {str(error).strip()}). Often the machine ran out of memory: "
                "give the node more memory_bytes, or run fewer parts at a time"
            ) from error

    def close(self) -> None:
        """Stop waiting for parts, and stop Ray if it was started here."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for reference in self._references.values():
            ray.cancel(reference, force=True)
        self._references.clear()
        if self._relay is not None:
            self._relay.close()
        if self._shared is not None:
            self._shared.remove()
        if self._started:
            ray.shutdown()

    def __enter__(self) -> "RayRunner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def worker_env(num_gpus: float) -> dict[str, str]:
    """Environment of the process of a part or of a training worker that asks for `num_gpus`."""
    home = {name: os.environ[name] for name in (HOME_VARIABLE,) if name in os.environ}
    return {**WORKER_ENV, **home, **({} if num_gpus else NO_GPU_ENV)}


def local_worker_env(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment of the workers of a Ray started here: they find the project through PYTHONPATH, installed or not."""
    paths = [str(PROJECT_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    return {**WORKER_ENV, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _start(address: str | None, num_cpus: int | None, dashboard: bool) -> bool:
    """Connect to the cluster if there is one, else start a local Ray; True if it is local."""
    address = address or os.environ.get("RAY_ADDRESS")  # Ray sets it inside a submitted job
    if address:
        ray.init(address=address, log_to_driver=True)
        log.info("event=ray_connected address=%s", address)
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                _temp_dir=ray_folder(),
                runtime_env={"env_vars": local_worker_env(os.environ)},
                log_to_driver=True,
            )
            break
        except Exception as error:  # Ray raises nothing more special; it gives itself 30 s, too few on a busy machine
            if "timed out" not in str(error) or attempt == START_ATTEMPTS:
                raise
            log.warning("event=ray_start_retried attempt=%d error=%s", attempt, error)
            ray.shutdown()
    log.info("event=ray_started num_cpus=%s dashboard=%s", num_cpus, dashboard)
    return True


def _call(shared: SharedFolder | None, function: Callable[..., Any], *args: Any) -> Any:
    enter_temporary_home()
    if shared is not None:
        shared.check()
    return function(*args)


def _check_seen(shared: SharedFolder) -> None:
    """ConfigError if a machine of the cluster does not see the folder."""
    look = ray.remote(num_cpus=0, runtime_env={"env_vars": NO_GPU_ENV})(_problem)
    nodes = [node for node in cast(Any, ray).nodes() if node["Alive"]]
    answers = [
        look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(shared)
        for node in nodes
    ]
    if problems := [problem for problem in ray.get(answers) if problem]:
        shared.remove()
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _problem(shared: SharedFolder) -> str:
    return shared.problem()
