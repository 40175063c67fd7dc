"""How step time grows with the number of GPUs: bytes communicated, and how much of that overlaps with computation.

A model, not a measurement: it takes the measured time of one GPU and predicts what a network would add. Gradients are
reduced hierarchically, first inside a machine, then between machines, while the backward pass runs; the features of
the contrastive loss are gathered before it and overlap with nothing. `gradient_bytes` and `contrastive_bytes` can be
compared with the byte counts of a real run.
"""

import math
from dataclasses import dataclass

GPUS_PER_MACHINE = 8
# Assumed fractions: of the backward pass that overlaps with communication, of a link's bandwidth that NCCL reaches.
OVERLAP = 0.85
WIRE_EFFICIENCY = 0.8
BACKWARD_FRACTION = 2 / 3
# Time lost waiting for the slowest rank: 1 % inside a machine, 2 % at 64 GPUs.
JITTER_BASE, JITTER_PER_DOUBLING = 0.01, 0.01 / 3


@dataclass(frozen=True)
class Network:
    """Bandwidths in bytes/s: of a GPU inside its machine (as reached by NCCL), of a machine's links (nominal)."""

    inside: float
    outside: float

    @property
    def outside_of_one_gpu(self) -> float:
        """Bandwidth of one GPU on its machine's links when all send."""
        return self.outside * WIRE_EFFICIENCY / GPUS_PER_MACHINE


NVLINK_A100, NVLINK_H100 = 230e9, 360e9  # assumed bus rates of all-reduce; nominal 300 and 450 GB/s a direction
GBIT = 1e9 / 8
NETWORKS: dict[str, Network] = {
    "a100_8x200g": Network(NVLINK_A100, 8 * 200 * GBIT),
    "a100_1x100g": Network(NVLINK_A100, 100 * GBIT),
    "h100_8x400g": Network(NVLINK_H100, 8 * 400 * GBIT),
    "h100_8x200g": Network(NVLINK_H100, 8 * 200 * GBIT),
    "h100_1x100g": Network(NVLINK_H100, 100 * GBIT),
}


def gradient_bytes(num_parameters: int, world_size: int, bytes_per_number: int = 4) -> int:
    """Bytes that each process sends to average the gradients once, in a ring: 2 (W - 1) / W of them."""
    return 2 * (world_size - 1) * num_parameters * bytes_per_number // world_size


def contrastive_bytes(
    rows: int, world_size: int, num_batches: int = 2, embed_dim: int = 256, bytes_per_number: int = 4
) -> int:
    """Bytes that each process receives for the contrastive losses of a step: features of images and of texts.

    `rows` are its own rows of one batch, `num_batches` how many batches have a contrastive loss. Features are sent
    once, in float32: every process computes the whole loss, so the backward pass sends nothing. bf16 features with
    their gradients sent back would be as many bytes.
    """
    return (world_size - 1) * rows * embed_dim * bytes_per_number * 2 * num_batches


@dataclass(frozen=True)
class ScaledStep:
    """Seconds of a step on `world_size` GPUs with the same work each."""

    world_size: int
    computing: float
    waiting: float  # for the slowest
    contrastive: float
    gradients: float
    exposed: float  # of the gradients' seconds: those that do not overlap with the backward pass

    @property
    def seconds(self) -> float:
        return self.computing + self.waiting + self.contrastive + self.exposed

    @property
    def efficiency(self) -> float:
        """Fraction of the time that is computing: throughput per GPU relative to one GPU alone."""
        return self.computing / self.seconds


def scaled_step(
    step_seconds: float,
    world_size: int,
    num_parameters: int,
    network: Network,
    rows: int,
    num_batches: int = 2,
    gradient_bytes_per_number: int = 4,
    overlaps: bool = True,
) -> ScaledStep:
    """The times of a step on `world_size` GPUs that each do the work that one does in `step_seconds`.

    ValueError if the GPUs of several machines do not fill them.
    """
    if world_size > GPUS_PER_MACHINE and world_size % GPUS_PER_MACHINE:
        raise ValueError(f"{world_size} GPUs do not fill machines of {GPUS_PER_MACHINE}")
    if world_size == 1:
        return ScaledStep(1, step_seconds, 0.0, 0.0, 0.0, 0.0)
    size = num_parameters * gradient_bytes_per_number
    gradients = _all_reduce_seconds(size, world_size, network)
    overlapped_seconds = OVERLAP * BACKWARD_FRACTION * step_seconds if overlaps else 0.0
    doublings = max(0.0, math.log2(world_size / GPUS_PER_MACHINE))
    rate = network.inside if world_size <= GPUS_PER_MACHINE else network.outside_of_one_gpu
    return ScaledStep(
        world_size,
        computing=step_seconds,
        waiting=(JITTER_BASE + JITTER_PER_DOUBLING * doublings) * step_seconds,
        contrastive=contrastive_bytes(rows, world_size, num_batches) / rate,
        gradients=gradients,
        exposed=max(0.0, gradients - overlapped_seconds),
    )


def _all_reduce_seconds(size: float, world_size: int, network: Network) -> float:
    """Reduce-scatter and all-gather inside machines; between them every GPU reduces its slice of the gradients."""
    inside = min(world_size, GPUS_PER_MACHINE)
    machines = world_size // inside
    within = 2 * (inside - 1) / inside * size / network.inside
    between = 2 * (machines - 1) / machines * size / GPUS_PER_MACHINE / network.outside_of_one_gpu
    return within + between
