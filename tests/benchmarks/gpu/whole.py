"""Part 3: other sizes and mixes against the reference's graph, long texts, batch sizes, compile time, real loader."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gpu.bench import Bench, rounded
from tests.benchmarks.gpu.corpus import tokenizer, write_corpus
from tests.benchmarks.gpu.steps import OURS, REFERENCE, TOY_MODEL, make_step, run_variant
from tests.benchmarks.step_inputs import (
    BASE_4M,
    BASE_MODEL,
    BASE_STAGE_2,
    LARGE_4M,
    LARGE_MODEL,
    TINY,
    StreamShape,
    all_longest,
    images,
    regions,
)
from tests.benchmarks.training_sides import OurSide
from x2vlm.data.loading.config import DataConfig
from x2vlm.data.loading.loader import StepLoader, iterate_steps
from x2vlm.data.loading.streams import StreamConfig
from x2vlm.models.config import ModelConfig
from x2vlm.models.x2vlm import build_model

SWEEP = (64, 128, 256)  # image rows; as many region rows of 50 images in 128
WARMUP, ROUNDS = 5, 15
LOADER_WARMUP, LOADER_STEPS = 15, 60


def run_part_3(bench: Bench) -> None:
    cases: list[tuple[str, ModelConfig, tuple[StreamShape, ...]]] = [
        ("large 4M", LARGE_MODEL, LARGE_4M),
        ("base stage 2 (clips)", BASE_MODEL.model_copy(update={"num_frames": 3}), BASE_STAGE_2),
        ("base 4M, 40 tokens everywhere", BASE_MODEL, all_longest(BASE_4M)),
    ]
    sweep = [(f"base, {rows} + {rows} rows", rows) for rows in SWEEP]
    if bench.is_tiny:
        cases, sweep = [("tiny", TOY_MODEL.model_copy(update={"num_frames": 3}), TINY)], [("tiny, 4 + 4 rows", 4)]
    bench.measure("loader: end to end", lambda: end_to_end(bench))
    for name, config, streams in cases:
        rows = [
            bench.measure(
                f"{name}: {variant.name}",
                lambda variant=variant, c=config, s=streams: run_variant(
                    bench, variant, c, s, warmup=WARMUP, rounds=ROUNDS
                ),
            )
            for variant in (REFERENCE, OURS)
        ]
        bench.compare(rows[1], rows[0])
    base = TOY_MODEL if bench.is_tiny else BASE_MODEL
    for name, count in sweep:
        streams = (images(count), regions(count, max(1, count * 50 // 128)))
        bench.measure(
            f"{name}: {OURS.name}",
            lambda s=streams: run_variant(bench, OURS, base, s, warmup=WARMUP, rounds=ROUNDS),
        )
    bench.measure("compile time", lambda: compile_time(bench))


def compile_time(bench: Bench) -> dict[str, Any]:
    """Seconds of the first step of the compiled model in this process, and those of an ordinary step among them."""
    config, streams = (TOY_MODEL, TINY[:2]) if bench.is_tiny else (BASE_MODEL, BASE_4M)
    step = make_step(OURS, config, streams, bench.device)
    if not bench.is_gpu:
        step()
        return {"first_step_seconds": None}
    torch.compiler.reset()
    before = time.perf_counter()
    with torch._inductor.config.patch(force_disable_caches=True):  # compiled code of earlier variants is on disk
        step()
    torch.cuda.synchronize()
    return {"first_step_seconds": round(time.perf_counter() - before, 1)}


def end_to_end(bench: Bench) -> dict[str, Any]:
    """Steps fed by the real loader from JPEG shards, against the same steps on one batch on the device.

    `wait_percent` is the fraction of time spent waiting for the next batch while the device is idle: every step
    synchronises here, so that data wait cannot overlap with queued work.
    """
    config = TOY_MODEL if bench.is_tiny else BASE_MODEL
    rows, num_images, samples = (4, 2, 24) if bench.is_tiny else (128, 50, 8192)
    warmup, steps = (0, 2) if bench.is_tiny else (LOADER_WARMUP, LOADER_STEPS)
    workers = 0 if bench.is_tiny else max(1, (os.cpu_count() or 1) - 1)
    data = DataConfig(
        streams=(
            StreamConfig(kind="image", batch_size=rows),
            StreamConfig(kind="region", batch_size=rows, num_images=num_images),
        )
    )
    torch.manual_seed(0)
    model = build_model(config).to(bench.device).train()
    side = OurSide(model, OURS.execution, half_precision=True)
    row: dict[str, Any] = {"reader_processes": workers, "pictures_per_step": rows + num_images}
    with tempfile.TemporaryDirectory() as folder:
        files = write_corpus(Path(folder), samples, 2 if bench.is_tiny else 16, 2 if bench.is_tiny else 64)
        vision = config.vision
        loader = StepLoader(files, data, tokenizer(), vision.image_res, vision.patch_size)
        fetched = iterate_steps(loader, 0, warmup + steps, workers, pin_memory=bench.is_gpu)
        waited, batches, started = 0.0, {}, time.perf_counter()
        for number in range(warmup + steps):
            if number == warmup:
                waited, started = 0.0, time.perf_counter()
            before = time.perf_counter()
            found = next(fetched)
            waited += time.perf_counter() - before
            batches = {name: batch.to(bench.device, non_blocking=True) for name, batch in found.batches.items()}
            losses = side.step(batches).tolist()
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(steps):
            side.step(batches).tolist()
        fed = time.perf_counter() - started
    row["last_losses_are_finite"] = all(abs(value) < float("inf") for value in losses)
    measured = {
        "ms": seconds / steps * 1e3,
        "ms_without_loader": fed / steps * 1e3,
        "wait_percent": 100 * waited / seconds,
        "images_per_second": (rows + num_images) * steps / seconds,
    }
    return row | {name: rounded(value) if bench.is_gpu else None for name, value in measured.items()}
