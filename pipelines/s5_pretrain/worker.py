"""Training in this process, or on Ray Train workers that are replaced when they are lost."""

import json
import logging
import math
import os
import socket
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.flow.run.cluster import current_cluster, shortage_of_workers
from pipelines.flow.run.ray_runner import worker_env
from pipelines.flow.stage import Workers
from pipelines.flow.store.temporary import enter_temporary_home
from pipelines.s5_pretrain.config import PretrainConfig, Shared, num_training, workers_of
from pipelines.s5_pretrain.fencing import Fence
from pipelines.s5_pretrain.local_processes import (
    check_devices,
    readers_per_trainer,
    train_on_this_machine,
    usable_cpus,
)
from pipelines.s5_pretrain.runs import METRICS
from x2vlm.config import parse_config
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_cache import DEFAULT_FOLDER, ShardCache, fetch_listing, listed_shards
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.data.text.tokenizer import read_tokenizer
from x2vlm.errors import NotEnoughRoom, StageFailed
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.loop import HEARTBEATS, fit
from x2vlm.train.ranks import Ranks, current_ranks, keep_first
from x2vlm.train.validation.held_out import split_shards
from x2vlm.train.watchdog import STALLED

log = logging.getLogger(__name__)

JOB = "job.json"
# Asking Ray about an announced preemption is a round trip of all workers.
PREEMPTION_POLL_STEPS = 50


def train(
    job: Mapping[str, Any],
    world_size: int,
    num_gpus: float | None = None,
    holds_lease: Callable[[], None] = lambda: None,
) -> None:
    """Run `train_worker` on Ray Train if this process has a Ray, else here, by torchrun if it takes several processes.

    No Ray is looked for: one that the environment names may be somebody else's. Each of Ray's workers asks for
    `num_gpus`; None: for one where the cluster has any. NotEnoughRoom if they do not fit.
    `holds_lease` raises LeaseLost once another driver trains this run.
    The job is also written to the state folder, from where torchrun runs it (`pipelines.s5_pretrain.torchrun`).
    """
    StoreFiles(job["state_uri"]).write(JOB, json.dumps(job).encode())
    if ray.is_initialized():
        _train_on_ray(job, num_gpus, holds_lease)
    elif world_size == 1:
        train_worker(job)
    else:
        check_devices(world_size, torch.cuda.device_count(), _stage(job))
        train_on_this_machine(f"{job['state_uri']}/{JOB}", world_size, _stage(job))


def _stage(job: Mapping[str, Any]) -> str:
    """What messages call the work of a job."""
    return str(job.get("kind", "pretrain"))


class TrainingRun(Protocol):
    """What the processes of a job do together; `shared` says which numbers of them can."""

    @property
    def shared(self) -> Shared: ...

    def run(
        self,
        ranks: Ranks,
        runtime: TrainRuntime,
        fence: Fence,
        num_readers: int,
        asks_save: Callable[[int], bool] | None,
    ) -> None:
        """Train to the end on this process; all that counts is kept in the state folder."""


def run_of(job: Mapping[str, Any]) -> TrainingRun:
    """The work that a job's `kind` names: `finetune`, or else pre-training."""
    if job.get("kind") == "finetune":
        from pipelines.s5_pretrain.finetune.training import TaskTrainingRun  # timm and transformers

        return TaskTrainingRun(job)
    return PretrainingRun(job)


def train_worker(job: Mapping[str, Any], asks_save: Callable[[int], bool] | None = None) -> None:
    """The work of every process: build model and loader, train to the end. `job` is plain JSON.

    Where so many processes cannot share the batches, the last ones have nothing to do and return.
    A checkpoint is written if `asks_save(step)`; nobody is asked while processes are idle. TrainingStopped after
    SIGTERM. Once another driver has taken over, the process ends at once with EXIT_FENCED.
    """
    training = run_of(job)
    runtime = parse_config(TrainRuntime, job.get("runtime", {}), "training job: runtime")
    started = current_ranks("cuda" if torch.cuda.is_available() else "cpu")
    number = num_training(training.shared, runtime, started.world_size)
    if number < started.world_size and started.is_first:
        log.warning(
            "event=ranks_idle started=%d train=%d: the most that divide every batch", started.world_size, number
        )
    ranks = keep_first(number, started)
    if ranks is None:
        return
    if number < started.world_size:
        asks_save = None  # Ray answers once all the processes it started have asked
    fence = Fence(job["state_uri"], job.get("token"))
    fence.check()
    with fence.watched():
        training.run(ranks, runtime, fence, _num_readers(training.shared, runtime), asks_save)


class PretrainingRun:
    """A job of pre-training."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.job = job
        self.shared = parse_config(PretrainConfig, job["config"], "pretrain job")

    def run(
        self,
        ranks: Ranks,
        runtime: TrainRuntime,
        fence: Fence,
        num_readers: int,
        asks_save: Callable[[int], bool] | None,
    ) -> None:
        """As `TrainingRun.run`."""
        # timm and transformers, which a driver of Ray workers does not need
        from pipelines.s5_pretrain.start_weights import load_start, random_model

        job, config = self.job, self.shared
        tokenizer = read_tokenizer(job["vocabulary"])

        def loader(shards: Sequence[ShardFiles]) -> StepLoader:
            image_res, patch_size = config.model.vision.image_res, config.model.vision.patch_size
            return StepLoader(shards, config.data, tokenizer, image_res, patch_size, ranks.rank, ranks.world_size)

        folder = Path(runtime.shard_cache or DEFAULT_FOLDER)
        cache = ShardCache(folder, runtime.shard_cache_bytes, retry_seconds=runtime.store_retry_seconds)
        trained, held_out = split_shards(
            listed_shards(fetch_listing(**job["shards"], cache=cache), cache), config.data.validation_share
        )
        torch.set_num_threads(runtime.cpu_threads)
        model = random_model(config)
        new_parameters = load_start(model, job.get("start"), ranks.is_first)
        if branch := job.get("branch"):  # its weights are in its first checkpoint
            new_parameters = branch["new_parameters"]
        state = job["state_uri"]
        fit(
            model,
            loader(trained),
            config.train,
            ranks,
            CheckpointStore(
                f"{state}/checkpoints",
                runtime.keep_checkpoints,
                runtime.keep_every,
                before_commit=fence.check,
                retry_seconds=runtime.store_retry_seconds,
            ),
            f"{state}/{METRICS}",
            job["facts"],
            num_readers,
            new_parameters=new_parameters,
            runtime=runtime,
            held_out=loader(held_out) if runtime.validate_every is not None and held_out else None,
            asks_save=asks_save,
        )


def ray_worker(job: Mapping[str, Any]) -> None:
    """`train_worker` on a Ray Train worker. StageFailed, naming rank and node, for any error in it."""
    enter_temporary_home()
    try:
        train_worker(job, PreemptionWatch())
    except Exception as error:
        address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        where = f"rank {current_ranks().rank} on node {socket.gethostname()} ({address})"
        raise StageFailed(f"{where}: {type(error).__name__}: {error}") from error


class PreemptionWatch:
    """True once for every announcement by Ray that a machine of this run will be preempted."""

    def __init__(self) -> None:
        import ray.train

        self._ask = getattr(ray.train, "get_preemption_info", None)  # alpha in Ray 2.60
        self._known: Any = None

    def __call__(self, step: int) -> bool:
        if self._ask is None or step % PREEMPTION_POLL_STEPS:
            return False
        previous, self._known = self._known, self._ask()
        if self._known is None or self._known == previous:
            return False
        log.warning("preemption_announced step=%d info=%s", step, self._known)
        return True


def _num_readers(config: Shared, runtime: TrainRuntime) -> int:
    """Prefetching processes for one trainer: its part of the usable CPUs on a GPU machine, else none.

    A trainer of Ray sees its own GPU only: how many share the machine is in its environment.
    """
    if runtime.readers is not None:
        return runtime.readers
    if not torch.cuda.is_available():
        return 0
    num_trainers = int(os.environ.get("LOCAL_WORLD_SIZE") or min(config.world_size, torch.cuda.device_count()))
    return readers_per_trainer(num_trainers, usable_cpus())


class FailureWindow:
    """Counts failures of the last `hours`; a clock that jumps neither forgets nor adds any."""

    def __init__(self, most: int, hours: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._seconds, self._clock = most, hours * 3600, clock
        self._times: deque[float] = deque()

    def allows_another(self) -> bool:
        """Record a failure now; whether no more than the allowed number lie in the window."""
        now = self._clock()
        self._times.append(now)
        while self._times[0] <= now - self._seconds:
            self._times.popleft()
        return len(self._times) <= self._most


def _train_on_ray(job: Mapping[str, Any], num_gpus: float | None, holds_lease: Callable[[], None]) -> None:
    """Run `ray_worker` on Ray Train workers; lost ones are replaced and continue from the checkpoint.

    Ray counts failures over a whole run, and a run of weeks meets more of them than one of hours: so each of Ray's runs
    ends at its first failure, and another one follows while the window allows it. `holds_lease` raises LeaseLost where
    another driver is the reason.
    """
    runtime = parse_config(TrainRuntime, job.get("runtime", {}), "training job: runtime")
    state_uri = job["state_uri"]
    failures = FailureWindow(runtime.max_failures, runtime.failure_window_hours)
    while True:
        _remove_stall_report(state_uri)
        name, error = _fit_on_ray(job, runtime, num_gpus)
        if error is None:
            return
        holds_lease()
        stall = _stall(state_uri)
        if not failures.allows_another():
            allowed = f"{runtime.max_failures} failures in {runtime.failure_window_hours:g} h are allowed"
            raise StageFailed(f"{_stage(job)}: {name} failed, and {allowed}: {stall or error}") from error
        log.warning("event=workers_replaced run=%s error=%s", name, stall or error)


def _fit_on_ray(
    job: Mapping[str, Any], runtime: TrainRuntime, num_gpus: float | None
) -> tuple[str, BaseException | None]:
    """One run of Ray Train to its end or its first failure: its name and the error.

    The name is new every time: with an old one Ray would resume its own snapshot and do nothing.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    state_uri = job["state_uri"]
    name = f"{_stage(job)}-{Path(state_uri).name[:12]}-{uuid.uuid4().hex[:8]}"
    workers = workers_of(run_of(job).shared, runtime)
    resources = _resources_per_worker(_stage(job), workers, num_gpus)
    trainer = TorchTrainer(
        ray_worker,
        train_loop_config=dict(job),
        torch_config=TorchConfig(timeout_s=math.ceil(runtime.collective_seconds)),
        scaling_config=ScalingConfig(
            # Ray's stub lacks the pair of numbers.
            num_workers=workers.most if workers.fewest == workers.most else (workers.fewest, workers.most),  # type: ignore[arg-type]
            use_gpu="GPU" in resources,
            resources_per_worker=resources,
            placement_strategy=runtime.placement,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=f"{state_uri}/ray",
            failure_config=FailureConfig(max_failures=0),
            worker_runtime_env={"env_vars": worker_env(resources.get("GPU", 0.0))},  # type: ignore[call-arg]  # the stub's
        ),
    )
    log.info("ray_train run=%s %s resources=%s", name, workers, resources)
    try:
        return name, trainer.fit().error
    except TrainingFailedError as raised:
        return name, raised


def _resources_per_worker(stage: str, workers: Workers, num_gpus: float | None) -> dict[str, float]:
    """What each worker asks Ray for. NotEnoughRoom if so many can never run at a time.

    A cluster that has any GPU was not rented for CPUs: with too few of them training waits or is refused.
    """
    cluster = current_cluster()
    gpus = num_gpus if num_gpus is not None else float(cluster.has_gpus)
    shortage = shortage_of_workers(stage, workers, {"CPU": workers.num_cpus, "GPU": gpus}, cluster)
    if shortage is not None:
        raise NotEnoughRoom(shortage)
    return {"CPU": workers.num_cpus} | ({"GPU": gpus} if gpus else {})


def _remove_stall_report(state_uri: str) -> None:
    StoreFiles(f"{state_uri}/{HEARTBEATS}").remove(STALLED)


def _stall(state_uri: str) -> str:
    """The message of this run's watchdogs if they ended it: Ray only reports that workers died."""
    content = StoreFiles(f"{state_uri}/{HEARTBEATS}").read(STALLED)
    return "" if content is None else str(json.loads(content)["message"])
