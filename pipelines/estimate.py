"""Cost estimate of a recipe: FLOPs of a step, its time on a GPU, hours, days, money, memory and bytes, by phase.

Everything but the FLOPs depends on inputs that each line names: lengths of texts (measured on packed shards, or
assumed) and the fraction of a GPU's peak (measured by the user, or assumed). No prices are included; costs are for the
price that the user gives.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pydantic

from pipelines.experiment import Experiment
from pipelines.flow.store.store import Store
from pipelines.input_files import phase_key
from pipelines.report.text_lengths import TextLengths, text_lengths
from pipelines.s5_pretrain.config import PretrainConfig
from x2vlm.config import FrozenConfig, did_you_mean, parse_config, read_yaml
from x2vlm.cost.flops import DEVICES, BatchShape, Graph, step_flops
from x2vlm.cost.model_size import checkpoint_bytes, num_parameters, peak_memory
from x2vlm.cost.scaling import GPUS_PER_MACHINE, NETWORKS, scaled_step
from x2vlm.data.loading.config import StreamConfig
from x2vlm.errors import ConfigError

SHOWN_GPUS = ("A100-80", "H100", "H200")
# Fraction of the peak that executed FLOPs reach, by the width of the image tower: larger matrix products reach more.
ASSUMED_UTILISATION = 0.40
ASSUMED_UTILISATION_WIDE = 0.45
WIDE = 1024
ASSUMED = "assumed, not measured"
# CUDA context, communication buffers, fragmentation: not in the inventory of tensors.
MEMORY_ALLOWANCE = 5e9
# Below this a step is bound by kernel launches: 3,000 of 5 microseconds each take longer than the arithmetic.
MIN_TFLOP = 1.0


class MeasuredGpu(FrozenConfig):
    """Measurements of a user on one kind of GPU, by the width of the image tower ("768", "1024") or for every model."""

    utilisation: dict[str, float] | float
    source: str  # command, date, machine: printed beside every number derived from it

    def of(self, width: int) -> float | None:
        return self.utilisation if isinstance(self.utilisation, float) else self.utilisation.get(str(width))


class Measured(FrozenConfig):
    """A file of measurements: `gpus: {H200: {utilisation: {"768": 0.38}, source: ...}}`."""

    gpus: dict[str, MeasuredGpu]

    @pydantic.model_validator(mode="after")
    def _are_known(self) -> "Measured":
        for name, gpu in self.gpus.items():
            if name not in DEVICES:
                raise ValueError(f"gpus.{name}: known are {', '.join(DEVICES)}")
            given = gpu.utilisation.values() if isinstance(gpu.utilisation, dict) else [gpu.utilisation]
            if not all(0 < value <= 1 for value in given):
                raise ValueError(f"gpus.{name}.utilisation: fractions of the peak lie above 0 and up to 1")
        return self


@dataclass(frozen=True)
class EstimateOptions:
    """Options of the user: GPUs to show, measurements, a price, a number of GPUs instead of the recipe's, a network."""

    gpus: tuple[str, ...] = SHOWN_GPUS
    measured: Measured | None = None
    dollars_per_gpu_hour: float | None = None
    num_gpus: int | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.gpus) - set(DEVICES)):
            hints = " ".join(did_you_mean(name, DEVICES, "known are") for name in unknown)
            raise ConfigError(f"no GPU called {', '.join(unknown)}; {hints}")
        if self.network is not None and self.network not in NETWORKS:
            hint = did_you_mean(self.network, NETWORKS, "known are")
            raise ConfigError(f"no network called {self.network}; {hint}")


@dataclass(frozen=True)
class GpuEstimate:
    """One phase on one kind of GPU. `milliseconds` with communication; memory without the allowance."""

    gpu: str
    num_gpus: int
    utilisation: float
    utilisation_source: str
    milliseconds: float
    efficiency: float
    texts_per_second_per_gpu: float
    gpu_hours: float
    days: float
    dollars: float | None
    memory_bytes: int
    fits: bool


@dataclass(frozen=True)
class PhaseEstimate:
    """One training. TFLOP are of one step of one GPU, mean over the run."""

    phase: str
    steps: int
    num_parameters: int
    mean_tokens: Mapping[str, float]
    tokens_source: str
    tflop: float
    reference_tflop: float
    checkpoint_bytes: int
    checkpoints_bytes: int  # of all kept checkpoints
    packed_bytes: int | None  # None: nothing is packed yet
    gpus: tuple[GpuEstimate, ...]


def estimate(experiment: Experiment, options: EstimateOptions, store: Store | None = None) -> list[PhaseEstimate]:
    """Every phase of an experiment, in order. With a `store`, lengths and bytes are those of its packed shards.

    ConfigError if the number of GPUs does not divide the recipe's batches.
    """
    phases = [(phase_key(experiment.name, name), config) for name, config in experiment.phases.items()]
    phases.append((experiment.name, experiment.pretrain))
    return [
        estimate_phase(
            name,
            config,
            options,
            text_lengths(
                experiment,
                f"pack/{name}",
                config.data.examples,
                store,
                {source: most for stream in config.data.streams for source, most in stream.region_captions.items()},
            ),
            _packed_bytes(experiment, f"pack/{name}", store),
            experiment.train_runtime.keep_checkpoints,
        )
        for name, config in phases
    ]


def estimate_phase(
    name: str,
    config: PretrainConfig,
    options: EstimateOptions,
    lengths: TextLengths,
    packed_bytes: int | None = None,
    keep_checkpoints: int = 2,
) -> PhaseEstimate:
    """One training on the GPUs of `options`."""
    num_gpus = options.num_gpus or config.world_size
    tflop = mean_step_flops(config, lengths, num_gpus, "executed") / 1e12
    size = checkpoint_bytes(config.model)
    return PhaseEstimate(
        phase=name,
        steps=config.train.steps,
        num_parameters=num_parameters(config.model),
        mean_tokens={stream.kind: round(lengths.mean[stream.kind], 2) for stream in config.data.streams},
        tokens_source=lengths.source,
        tflop=tflop,
        reference_tflop=mean_step_flops(config, lengths, num_gpus, "reference") / 1e12,
        checkpoint_bytes=size,
        checkpoints_bytes=size * keep_checkpoints,
        packed_bytes=packed_bytes,
        gpus=tuple(_on_gpu(gpu, config, options, lengths, num_gpus, tflop) for gpu in options.gpus),
    )


def batch_shapes(config: PretrainConfig, lengths: TextLengths, num_gpus: int, matching: bool) -> list[BatchShape]:
    """The batches of one GPU in one step, all texts of mean length.

    ConfigError if `num_gpus` does not divide a batch.
    """
    shapes = []
    for stream in config.data.streams:
        if stream.batch_size % num_gpus:
            fit = [
                number for number in range(1, config.world_size + num_gpus) if config.sharing_problem(number) is None
            ]
            raise ConfigError(
                f"--num-gpus: {num_gpus} GPUs cannot share data.streams.{stream.label}.batch_size {stream.batch_size}; "
                f"the recipe says {config.world_size}, and these can: {', '.join(map(str, fit[-6:]))}"
            )
        rows = stream.batch_size // num_gpus
        frames = config.data.examples.frames_per_clip if stream.kind == "video" else 1
        images = math.ceil((stream.num_images or stream.batch_size) / num_gpus) * frames
        tokens = _spread(lengths.mean[stream.kind], rows)
        masking = config.data.examples.masking
        masked = tuple(min(masking.max_masks, max(1, round(number * masking.prob))) for number in tokens)
        shapes.append(BatchShape(stream.kind, images, tokens, masked, matching))
    return shapes


def mean_step_flops(config: PretrainConfig, lengths: TextLengths, num_gpus: int, graph: Graph) -> float:
    """FLOPs of one GPU in one step, mean over the run: the matching loss is not in every step of every stream."""
    examples = config.data.examples
    shapes = {flag: batch_shapes(config, lengths, num_gpus, flag) for flag in (True, False)}
    total = 0.0
    for number, stream in enumerate(config.data.streams):
        with_it, without = (
            step_flops(config.model, [shapes[flag][number]], graph, examples.max_tokens, examples.masking.max_masks)
            for flag in (True, False)
        )
        fraction = matching_fraction(config, stream)
        total += fraction * with_it + (1 - fraction) * without
    return total


def matching_fraction(config: PretrainConfig, stream: StreamConfig) -> float:
    """Fraction of the run's steps in which a stream has the matching loss."""
    if not config.train.objective.matching:
        return 0.0
    stop = config.train.stop_matching_at
    running = 1.0 if stop is None else min(1.0, stop / config.train.steps)
    leader = next((item for item in config.data.streams if item.label == config.train.matching_follows), stream)
    return running * (1.0 if leader.match_main else leader.aux_share)


def load_measured(path: str) -> Measured:
    """The measurements in a YAML file; ConfigError for unknown GPUs and impossible fractions."""
    return parse_config(Measured, read_yaml(Path(path)), path)


def estimate_to_json(phases: Sequence[PhaseEstimate]) -> list[dict[str, Any]]:
    return [asdict(phase) for phase in phases]


def estimate_lines(phases: Sequence[PhaseEstimate]) -> list[str]:
    """The estimate as text, with the origin of every number."""
    return [line for phase in phases for line in _phase_lines(phase)]


def _phase_lines(phase: PhaseEstimate) -> list[str]:
    tokens = ", ".join(f"{kind} {number:g}" for kind, number in phase.mean_tokens.items())
    packed = "not known before they are packed"
    if phase.packed_bytes is not None:
        packed = f"{phase.packed_bytes / 1e9:.3g} GB"
    size, kept = phase.checkpoint_bytes / 1e9, phase.checkpoints_bytes / 1e9
    lines = [
        f"estimate of {phase.phase}: {phase.steps:,} steps, {phase.num_parameters / 1e6:.1f} M parameters",
        f"  tokens per text  {tokens} ({phase.tokens_source})",
        f"  TFLOP/step/GPU   {phase.tflop:.4g} executed, {phase.reference_tflop:.4g} in the reference's graph",
        f"  shards           {packed}",
        f"  checkpoints      {size:.2g} GB each, {kept:.2g} GB kept",
    ]
    if phase.tflop < MIN_TFLOP:
        return [*lines, "  a step this small is bound by its launches, not by arithmetic: no time is estimated"]
    lines.append("  GPU        number   ms/step  texts/s/GPU  GPU hours     days  peak GB  of peak  scaling")
    for gpu in phase.gpus:
        money = "" if gpu.dollars is None else f"  ${gpu.dollars:,.0f}"
        lines.append(
            f"  {gpu.gpu:<10} {gpu.num_gpus:>6} {gpu.milliseconds:>9.0f} {gpu.texts_per_second_per_gpu:>12,.0f}"
            f" {gpu.gpu_hours:>10,.0f} {gpu.days:>8.2f} {gpu.memory_bytes / 1e9:>8.1f} {gpu.utilisation:>8.0%}"
            f" {gpu.efficiency:>8.0%}{money}{'' if gpu.fits else '  does not fit'}"
        )
    for source in sorted({gpu.utilisation_source for gpu in phase.gpus}):
        names = ", ".join(gpu.gpu for gpu in phase.gpus if gpu.utilisation_source == source)
        lines.append(f"  fraction of peak on {names}: {source}")
    return [*lines, "  scaling and peak memory are modelled; allow 5 GB more for context, buffers and fragmentation"]


def _on_gpu(
    gpu: str, config: PretrainConfig, options: EstimateOptions, lengths: TextLengths, num_gpus: int, tflop: float
) -> GpuEstimate:
    utilisation, source = _utilisation(gpu, config.model.vision.width, options.measured)
    shapes = batch_shapes(config, lengths, num_gpus, matching=True)
    alone = tflop * 1e12 / (DEVICES[gpu].flops_per_second * utilisation)
    network = NETWORKS[options.network or ("a100_8x200g" if "A100" in gpu else "h100_8x400g")]
    rows = max(len(shape.text_lengths) for shape in shapes)
    whole = num_gpus if num_gpus <= GPUS_PER_MACHINE else GPUS_PER_MACHINE * math.ceil(num_gpus / GPUS_PER_MACHINE)
    step = scaled_step(alone, whole, num_parameters(config.model), network, rows, len(shapes))
    gpu_hours = step.seconds * config.train.steps * num_gpus / 3600
    memory = int(peak_memory(config.model, shapes, "executed").total)
    return GpuEstimate(
        gpu=gpu,
        num_gpus=num_gpus,
        utilisation=utilisation,
        utilisation_source=source,
        milliseconds=step.seconds * 1e3,
        efficiency=step.efficiency,
        texts_per_second_per_gpu=sum(len(shape.text_lengths) for shape in shapes) / step.seconds,
        gpu_hours=gpu_hours,
        days=gpu_hours / num_gpus / 24,
        dollars=None if options.dollars_per_gpu_hour is None else gpu_hours * options.dollars_per_gpu_hour,
        memory_bytes=memory,
        fits=memory + MEMORY_ALLOWANCE <= DEVICES[gpu].memory_bytes,
    )


def _utilisation(gpu: str, width: int, measured: Measured | None) -> tuple[float, str]:
    if measured is not None and gpu in measured.gpus:
        found = measured.gpus[gpu].of(width)
        if found is not None:
            return found, f"measured: {measured.gpus[gpu].source}"
    return (ASSUMED_UTILISATION_WIDE if width >= WIDE else ASSUMED_UTILISATION), ASSUMED


def _spread(mean: float, rows: int) -> tuple[int, ...]:
    """`rows` whole lengths whose mean is `mean`, to within half a token over all rows."""
    total = round(mean * rows)
    return tuple(total // rows + (number < total % rows) for number in range(rows))


def _packed_bytes(experiment: Experiment, node: str, store: Store | None) -> int | None:
    ref = None if store is None else store.read_ref(experiment.name, node)
    stored = None if store is None or ref is None else store.read_manifest(ref.manifest_path)
    if stored is None:
        return None
    return sum(file.bytes for part in stored[0].parts for file in part.record.files)
