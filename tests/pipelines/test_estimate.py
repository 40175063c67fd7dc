"""Estimates against the study's table of step times, typed in here, and against numbers worked out by hand."""

from pathlib import Path

import pytest
import yaml

from pipelines.estimate import (
    ASSUMED,
    EstimateOptions,
    PhaseEstimate,
    estimate,
    estimate_lines,
    estimate_phase,
    load_measured,
    matching_fraction,
    mean_step_flops,
)
from pipelines.experiment import load_experiment
from pipelines.flow.store.store import Store
from pipelines.report.text_lengths import ASSUMED as ASSUMED_TOKENS
from pipelines.report.text_lengths import TextLengths
from pipelines.s5_pretrain.config import PretrainConfig
from tests.e2e.conftest import run_job
from tests.support.models.sizes import LARGE
from x2vlm.cost.flops import utilisation
from x2vlm.errors import ConfigError

LENGTHS = TextLengths(ASSUMED_TOKENS, "assumed")


def _config(size: str, phase: int = 1, steps: int = 500_000) -> PretrainConfig:
    """The released batches per GPU, on 8 GPUs (large: 16)."""
    world_size = 8 if size == "base" else 16
    small = size == "large"
    streams = [
        {"kind": "image", "batch_size": 1024},
        {"kind": "region", "batch_size": 1024, "num_images": 400},
    ]
    if phase == 2:
        world_size = 16 if size == "base" else 32
        streams = [
            {"kind": "image", "batch_size": 1024},
            {"kind": "region", "batch_size": 1024, "num_images": 14 * 32 if small else 26 * 16},
            {"kind": "video", "batch_size": 20 * 32 if small else 40 * 16},
        ]
    values = {"data": {"streams": streams}, "world_size": world_size, "train": {"steps": steps}}
    return PretrainConfig.model_validate(values | ({"model": LARGE} if small else {}))


def _measured(tmp_path: Path, utilisation: float) -> EstimateOptions:
    path = tmp_path / "measured.yaml"
    gpu = {"utilisation": utilisation, "source": "a bench"}
    path.write_text(yaml.safe_dump({"gpus": {"A100-80": gpu, "H100": gpu}}))
    return EstimateOptions(gpus=("A100-80", "H100"), measured=load_measured(str(path)))


# Milliseconds of a step on one GPU, A100 and H100, at a fraction of the peak.
@pytest.mark.parametrize(
    ("size", "phase", "utilisation", "expected"),
    [
        ("base", 1, 0.4, [209, 66]),
        ("base", 1, 0.5, [167, 53]),
        ("base", 1, 0.6, [139, 44]),
        ("large", 1, 0.4, [315, 99]),
        ("large", 1, 0.5, [252, 79]),
        ("base", 2, 0.4, [219, 69]),
        ("large", 2, 0.4, [351, 111]),
    ],
)
def test_step_times_are_the_studys(
    tmp_path: Path, size: str, phase: int, utilisation: float, expected: list[int]
) -> None:
    found = estimate_phase("recipe", _config(size, phase), _measured(tmp_path, utilisation), LENGTHS)
    alone = [gpu.milliseconds * gpu.efficiency for gpu in found.gpus]
    assert alone == pytest.approx(expected, abs=0.7)
    assert {gpu.utilisation_source for gpu in found.gpus} == {"measured: a bench"}


@pytest.mark.parametrize(
    ("size", "steps", "num_gpus", "days"), [("base", 500_000, 8, (1.21, 0.38)), ("large", 250_000, 16, (0.91, 0.29))]
)
def test_days_are_the_studys(tmp_path: Path, size: str, steps: int, num_gpus: int, days: tuple[float, float]) -> None:
    found = estimate_phase("recipe", _config(size, steps=steps), _measured(tmp_path, 0.4), LENGTHS)
    for gpu, expected in zip(found.gpus, days, strict=True):
        assert gpu.days * gpu.efficiency == pytest.approx(expected, abs=0.006)
        assert gpu.gpu_hours == pytest.approx(gpu.days * 24 * num_gpus)
        assert gpu.gpu_hours == pytest.approx(gpu.milliseconds / 1e3 * steps * num_gpus / 3600)


def test_the_papers_seconds_are_the_utilisation_the_study_read_from_them() -> None:
    for size, seconds, expected in (("base", 1.210, 0.142), ("large", 2.419, 0.084)):
        config = _config(size)
        flop = mean_step_flops(config, LENGTHS, config.world_size, "reference")
        assert utilisation(flop, seconds, "A100-80") == pytest.approx(expected, abs=0.0006)


def test_the_matching_loss_is_counted_in_the_steps_that_have_it() -> None:
    noisy = {"kind": "image", "batch_size": 1024, "aux_sources": ["coco"], "aux_share": 0.15, "match_main": False}
    values = {"data": {"streams": [noisy]}, "train": {"steps": 10_000, "stop_matching_at": 2_000}}
    config = PretrainConfig.model_validate(values)
    assert matching_fraction(config, config.data.streams[0]) == pytest.approx(0.2 * 0.15)
    flop = mean_step_flops(config, LENGTHS, 8, "executed")
    without = config.model_copy(update={"train": config.train.model_copy(update={"stop_matching_at": 0})})
    always = PretrainConfig.model_validate({"data": {"streams": [{"kind": "image", "batch_size": 1024}]}})
    low, high = (mean_step_flops(one, LENGTHS, 8, "executed") for one in (without, always))
    assert flop == pytest.approx(low + 0.03 * (high - low))


def test_assumptions_are_called_assumptions_and_no_price_is_invented() -> None:
    (phase,) = estimate(load_experiment("base_4m_paper"), EstimateOptions())
    assert {gpu.utilisation_source for gpu in phase.gpus} == {ASSUMED}
    assert phase.tokens_source.startswith("assumed, not measured")
    assert all(gpu.dollars is None for gpu in phase.gpus)
    text = "\n".join(estimate_lines([phase]))
    assert "$" not in text
    assert text.count("assumed, not measured") == 2
    (priced,) = estimate(load_experiment("base_4m_paper"), EstimateOptions(dollars_per_gpu_hour=2.0))
    assert priced.gpus[0].dollars == pytest.approx(2 * priced.gpus[0].gpu_hours)


def test_what_does_not_fit_is_said() -> None:
    config = _config("large")
    (gpu,) = estimate_phase("x", config, EstimateOptions(gpus=("A100-40",), num_gpus=4), LENGTHS).gpus
    assert not gpu.fits
    assert gpu.memory_bytes > 40 * 2**30
    assert estimate_phase("x", config, EstimateOptions(gpus=("A100-80",)), LENGTHS).gpus[0].fits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: EstimateOptions(gpus=("A1000",)), "no GPU called A1000; did you mean `A100-"),
        (lambda: EstimateOptions(network="wifi"), "no network called wifi"),
        (lambda: estimate_phase("x", _config("base"), EstimateOptions(num_gpus=7), LENGTHS), "7 GPUs cannot share"),
    ],
)
def test_impossible_questions_are_refused(options, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        options()


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ({"H1000": {"utilisation": 0.4, "source": "x"}}, "known are"),
        ({"H100": {"utilisation": {"768": 1.4}, "source": "x"}}, "up to 1"),
        ({"H100": {"utilisation": 0.4}}, "source"),
    ],
)
def test_measurements_that_cannot_be_are_refused(tmp_path: Path, gpus: dict[str, object], message: str) -> None:
    path = tmp_path / "measured.yaml"
    path.write_text(yaml.safe_dump({"gpus": gpus}))
    with pytest.raises(ConfigError, match=message):
        load_measured(str(path))


def test_lengths_and_bytes_come_from_packed_shards_once_there_are_some(phase_run) -> None:  # type: ignore[no-untyped-def]
    """The sample's shards."""
    experiment = phase_run.experiment
    store = Store(experiment.store_uri)
    phases: list[PhaseEstimate] = estimate(experiment, EstimateOptions(), store)
    first, last = phases
    assert first.phase == "phases.phase1"
    assert last.tokens_source.startswith("measured on texts of the packed shards: ")
    assert " video" in last.tokens_source
    assert first.tokens_source.endswith("; video assumed")  # it packs none
    assert set(last.mean_tokens) == {"image", "region", "video"}
    assert 3 < last.mean_tokens["region"] < last.mean_tokens["image"] < 24
    manifest = phase_run.nodes["pack/phases"].manifest
    root = Path(experiment.store)
    on_disk = sum(
        (root / "parts/pack" / part.record.fingerprint[:2] / part.record.fingerprint / file.path).stat().st_size
        for part in manifest.parts
        for file in part.record.files
    )
    assert last.packed_bytes == on_disk
    assert first.packed_bytes is not None
    assert first.packed_bytes < on_disk


def test_the_job_answers_without_data_or_store(tmp_path: Path) -> None:
    job = run_job(
        "full_pretrain.py", "base_4m_paper", "--estimate", "--gpu", "H200", "--json", "--store", str(tmp_path / "none")
    )
    assert job.returncode == 0
    ((gpu,),) = [phase["gpus"] for phase in job.json["estimate"]]
    assert gpu["gpu"] == "H200"
    assert not (tmp_path / "none").exists()
