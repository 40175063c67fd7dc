"""What a Ray cluster has and may still add, and whether the parts of a plan fit: decided before anything runs.

Ray itself lets a task that fits nowhere wait for ever, and `torch` without a GPU quietly computes on CPUs.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from pipelines.flow.stage import Node, Workers
from x2vlm.errors import ConfigError, NotEnoughRoom

log = logging.getLogger(__name__)

MACHINES_VARIABLE = "X2VLM_MACHINES"
MAX_ADDED = 4096  # machines of a kind that are counted
NAMES = {"CPU": "CPU", "GPU": "GPU", "memory": "bytes of memory"}
Demand = Mapping[str, float]  # Ray's names of resources -> amount


@dataclass(frozen=True)
class Machine:
    """One machine of the cluster, or one that it can add; `resources` as Ray counts them."""

    resources: Demand
    hostname: str = ""

    def places(self, demand: Demand) -> int:
        """How many processes that each ask for `demand` it can hold at a time."""
        wanted = {name: amount for name, amount in demand.items() if amount > 0}
        room = [self.resources.get(name, 0.0) / amount for name, amount in wanted.items()]
        return math.floor(min(room) + 1e-6) if room else 1_000_000


@dataclass(frozen=True)
class Cluster:
    """The machines there are, and those that an autoscaler may add.

    `addable` has every machine it may add, as far as it told; `autoscales` with none: it did not tell.
    """

    machines: tuple[Machine, ...]
    addable: tuple[Machine, ...] = ()
    autoscales: bool = False
    is_local: bool = False  # a Ray that this process started for itself

    @property
    def has_gpus(self) -> bool:
        """There is a GPU, or the autoscaler said that it can add one."""
        return any(machine.resources.get("GPU", 0.0) > 0 for machine in (*self.machines, *self.addable))

    @property
    def hostnames(self) -> frozenset[str]:
        return frozenset(machine.hostname for machine in self.machines)

    def total(self, name: str) -> float:
        return sum(machine.resources.get(name, 0.0) for machine in self.machines)

    def described(self) -> str:
        """Its size in words, for messages."""
        if len(self.machines) == 1 and self.is_local:
            whose = "this machine's Ray has"
        elif len(self.machines) == 1:
            whose = "the cluster's one machine has"
        else:
            whose = f"the cluster's {len(self.machines)} machines have"
        return f"{whose} {self.total('CPU'):g} CPU and {self.total('GPU'):g} GPU"


def current_cluster(is_local: bool = False) -> Cluster:
    """The cluster that this process is connected to."""
    import ray

    machines = tuple(
        Machine(dict(node["Resources"]), str(node["NodeManagerHostname"]))
        for node in cast(Any, ray).nodes()
        if node["Alive"]
    )
    addable, autoscales = ((), False) if is_local else _growth(machines)
    return Cluster(machines, addable, autoscales, is_local)


def gpus_of(node: Node, cluster: Cluster) -> float:
    """GPUs that each part of `node` (each worker, where it has some) asks for on this cluster."""
    if node.runtime.num_gpus is not None:
        return node.runtime.num_gpus
    if node.stage.gpu_share is None or not cluster.has_gpus:
        return 0.0
    return node.stage.gpu_share(node.config)


def check_room(nodes: Iterable[Node], cluster: Cluster) -> None:
    """Raise NotEnoughRoom, with all shortages in numbers, if parts of `nodes` could never run on this cluster.

    Where the autoscaler may add what is missing, say so in the log: Ray asks it and waits.
    """
    shortages = []
    for node in nodes:
        if node.workers is not None:
            demand = {"CPU": node.workers.num_cpus, "GPU": gpus_of(node, cluster)}
            shortage = shortage_of_workers(node.key, node.workers, demand, cluster)
        elif node.stage.on_driver:
            continue
        else:
            demand = {
                "CPU": node.runtime.num_cpus,
                "GPU": gpus_of(node, cluster),
                "memory": float(node.runtime.memory_bytes),
            }
            shortage = _shortage_of_part(node, demand, cluster)
        if shortage is not None:
            shortages.append(shortage)
    if shortages:
        raise NotEnoughRoom("\n".join(dict.fromkeys(shortages)))


def shortage_of_workers(key: str, workers: Workers, demand: Demand, cluster: Cluster) -> str | None:
    """Why `workers` that each ask for `demand` can never all run at a time; None if they can, now or later."""
    there = _places(cluster.machines, workers.placement, demand)
    if there >= workers.fewest:
        return None
    asked = f"{key} trains with {workers.fewest} workers at a time, each with {_words(demand)}"
    if workers.placement.startswith("STRICT"):
        asked += f", placed {workers.placement}"
    later = _places((*cluster.machines, *cluster.addable), workers.placement, demand)
    if later >= workers.fewest or (cluster.autoscales and not cluster.addable):
        log.warning(
            "event=waiting_for_machines node=%s %s: %s, room for %d. It waits for the autoscaler to add machines",
            *(key, asked, cluster.described(), there),
        )
        return None
    remedy = "Add machines, or set fewer workers (`world_size`; another number trains other weights)"
    if demand["GPU"] > 0:
        remedy += "; to train on CPUs on purpose: `runtime: {pretrain: {num_gpus: 0}}`"
    elif cluster.is_local:
        remedy = f"Give --num-cpus {math.ceil(workers.fewest * demand['CPU'])}, whose processes then share the cores"
    return f"{asked}, but {cluster.described()}: room for {there}{_with_growth(later, there)}. {remedy}"


def _shortage_of_part(node: Node, demand: Demand, cluster: Cluster) -> str | None:
    if _fits(demand, cluster.machines):
        return None
    asked = f"{node.key}: a part asks for {_words(demand)} on one machine"
    if _fits(demand, cluster.addable) or (cluster.autoscales and not cluster.addable):
        log.warning(
            "event=waiting_for_machines node=%s %s: %s. It waits for the autoscaler to add a machine",
            *(node.key, asked, cluster.described()),
        )
        return None
    name = next((name for name in demand if not _fits({name: demand[name]}, cluster.machines)), None)
    most = "none has both" if name is None else f"the most on one machine is {_most(name, cluster.machines)}"
    remedy = "submit the job to a cluster that has it" if cluster.is_local else "add a machine that has it"
    return f"{asked}, but {cluster.described()}; {most}. Lower it in `runtime: {{{node.stage.name}: ...}}`, or {remedy}"


def _fits(demand: Demand, machines: Sequence[Machine]) -> bool:
    return any(machine.places(demand) >= 1 for machine in machines)


def _places(machines: Sequence[Machine], placement: str, demand: Demand) -> int:
    each = [machine.places(demand) for machine in machines]
    if placement == "STRICT_PACK":
        return max(each, default=0)
    return sum(places > 0 for places in each) if placement == "STRICT_SPREAD" else sum(each)


def _most(name: str, machines: Sequence[Machine]) -> str:
    return f"{max((machine.resources.get(name, 0.0) for machine in machines), default=0.0):g} {NAMES[name]}"


def _words(demand: Demand) -> str:
    return " and ".join(f"{amount:g} {NAMES[name]}" for name, amount in demand.items() if amount > 0) or "nothing"


def _with_growth(later: int, there: int) -> str:
    return f", for {later} once the autoscaler has added all it may" if later > there else ""


def _growth(machines: Sequence[Machine]) -> tuple[tuple[Machine, ...], bool]:
    """The machines that an autoscaler may still add to these, and whether there is an autoscaler.

    Told by X2VLM_MACHINES (Kubernetes: the autoscaler is in another container), or by the file with which the head was
    started (`ray up`): Ray itself keeps no record of it.
    """
    told = os.environ.get(MACHINES_VARIABLE)
    if told is not None:
        types = parse_machines(told)
    elif (config := _launcher_config()) is not None:
        types = launcher_machines(config)
    else:
        return (), False
    left = [machine for machine, count in types for _ in range(min(count, MAX_ADDED))]
    for machine in machines:
        same = next((other for other in left if _size(other) == _size(machine)), None)
        if same is not None:
            left.remove(same)
    return tuple(left), True


def parse_machines(text: str) -> list[tuple[Machine, int]]:
    """Machines and numbers that X2VLM_MACHINES names: `[{"CPU": 96, "GPU": 8, "count": 4}]`. ConfigError if it is none.

    Other keys are further resources, as Ray counts them.
    """
    try:
        found = [
            (Machine({k: float(v) for k, v in one.items() if k != "count"}), int(one["count"]))
            for one in json.loads(text)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f'{MACHINES_VARIABLE}: {text!r} is no list like [{{"CPU": 96, "GPU": 8, "count": 4}}] ({error!r})'
        ) from None
    return found


def launcher_machines(config: Mapping[str, Any]) -> list[tuple[Machine, int]]:
    """The machines that a file of Ray's VM launcher lets the autoscaler start, without the head. Units as Ray's."""
    most = int(config.get("max_workers", 2))
    return [
        (Machine({key: float(value) for key, value in kind["resources"].items()}), int(kind.get("max_workers", most)))
        for name, kind in config.get("available_node_types", {}).items()
        if name != config.get("head_node_type") and kind.get("resources")
    ]


def _launcher_config() -> Mapping[str, Any] | None:
    """What `ray start --head --autoscaling-config=FILE` was given on this machine, for the cluster we are in."""
    import psutil
    import ray

    address = ray.get_runtime_context().gcs_address
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        files = [word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")]
        if (
            not files
            or not any(word.endswith("monitor.py") for word in words)
            or f"--gcs-address={address}" not in words
        ):
            continue
        with contextlib.suppress(OSError, yaml.YAMLError):
            return dict(yaml.safe_load(Path(files[0]).expanduser().read_text(encoding="utf-8")))
    return None


def _size(machine: Machine) -> tuple[float, float]:
    return machine.resources.get("CPU", 0.0), machine.resources.get("GPU", 0.0)
