"""What watches a run: who is called stuck, the profile of some steps, the console line, the counted work."""

import gzip
import json
import logging

import pytest
import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.runs import CONFIG
from x2vlm.cost.flops import forward_flops
from x2vlm.data.loading.loader import StepLoader
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.ranks import Ranks
from x2vlm.train.throughput import shape_of, speeds, work_of
from x2vlm.train.watchdog import Heartbeat, describe_stall


def _heartbeat(rank, step, phase, **more):
    return Heartbeat(rank, f"node{rank}", 100 + rank, step, phase, **more)


def test_the_one_behind_is_named():
    found = [
        _heartbeat(0, 8, "train", where="all_reduce (c.py:1)", waits_for_others=True),
        _heartbeat(1, 8, "wait for data", where="read (files.py:7)"),
        _heartbeat(2, 8, "train", where="all_reduce (c.py:1)", waits_for_others=True),
    ]
    message = describe_stall(found, 300)
    assert "Behind: rank 1 (host node1, pid 101) at step 8, phase 'wait for data', in read (files.py:7). " in message
    assert "rank 0" not in message
    found[1] = _heartbeat(1, 7, "save")  # frozen as a whole: it cannot say where
    assert "Behind: rank 1 (host node1, pid 101) at step 7, phase 'save', which does not answer. " in describe_stall(
        found, 300
    )


def test_in_the_same_phase_the_one_that_waits_for_nobody_is_behind():
    found = [
        _heartbeat(0, 8, "train", where="all_gather (c.py:1)", waits_for_others=True),
        _heartbeat(1, 8, "train", where="forward (m.py:3)"),
    ]
    assert "Behind: rank 1 (host" in describe_stall(found, 300)
    assert "rank 0" not in describe_stall(found, 300)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A short run with a profile, and its log."""
    folder = tmp_path_factory.mktemp("watched")
    shards = make_shards(folder / "shards")
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = logging.getLogger("x2vlm.train.recording.writer")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    torch.manual_seed(0)
    config = CONFIG.model_copy(update={"steps": 5})
    runtime = TrainRuntime(log_every=2, profile_steps=(1, 2))
    try:
        loader = StepLoader(shards, DATA, TOKENIZER, 32, 16)
        store = CheckpointStore(f"{folder}/checkpoints")
        fit(build_model(MODEL), loader, config, Ranks(), store, f"{folder}/metrics.jsonl", runtime=runtime)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    return folder, records, loader


def test_a_profile_holds_the_operators_of_the_steps_asked_for(watched):
    folder, _, _ = watched
    assert {path.name for path in (folder / "profile").iterdir()} == {"top20.txt", "trace.json.gz"}
    assert "aten::" in (folder / "profile/top20.txt").read_text()
    events = json.loads(gzip.decompress((folder / "profile/trace.json.gz").read_bytes()))["traceEvents"]
    steps = sum(event.get("name") == "Optimizer.step#ReferenceAdamW.step" for event in events)
    assert steps == 2


def test_the_console_has_a_line_every_log_every_steps(watched):
    _, records, _ = watched
    lines = [record for record in records if record.startswith("step=")]
    assert [line.split()[0] for line in lines] == ["step=2/5", "step=4/5", "step=5/5"]
    for word in ("loss=", "grad_norm=", "lr=", "texts/s=", "images/s=", "tokens/s=", "data_wait=", "peak_gb="):
        assert all(word in line for line in lines), word


def test_every_step_says_how_much_work_it_was(watched):
    folder, _, loader = watched
    for line in read_metrics(folder / "metrics.jsonl"):
        data = loader[line["step"]]
        num_texts = sum(len(batch.keys) for batch in data.batches.values())
        assert line["texts_per_second"] * line["seconds"] == pytest.approx(num_texts, rel=0.02)
        assert line["flops_reference"] > line["flops_executed"] > 0
        assert 0 <= line["data_wait_percent"] <= 100
        assert line["peak_memory_bytes"] > 1e7
        assert line["world_size"] == 1


def test_work_counts_real_tokens_and_every_frame(watched):
    _, _, loader = watched
    data = loader[0]
    objectives = {name: ObjectiveConfig() for name in data.batches}
    work = work_of(data, MODEL, DATA.examples, objectives, ExecutionConfig())
    assert work["texts"] == 4 + 8 + 4
    regions = data.batches["region"].pixels.shape[0]
    assert work["images"] == 4 + regions + 4 * 2
    assert work["tokens"] == sum(int(batch.text_mask_BL.sum()) for batch in data.batches.values())
    shapes = [shape_of(batch, True) for batch in data.batches.values()]
    assert work["executed_flops"] == 3 * sum(forward_flops(MODEL, shape, "executed", 12, 12) for shape in shapes)
    assert speeds({**work, "executed_flops": 5e12}, 2.0, 4, 1e13)["mfu_executed"] == 0.25
    assert speeds(work, 2.0, 4, None)["texts_per_second"] == 4 * 16 / 2
