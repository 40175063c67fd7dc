"""What watches a run: who is called stuck, the profile of some steps, the console line, the counted work."""

import gzip
import importlib.util
import json
import logging
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.runs import CONFIG, toy_model
from x2vlm.cost.flops import forward_flops
from x2vlm.data.loading.loader import StepLoader
from x2vlm.errors import MissingPackage
from x2vlm.models.execution import ExecutionConfig
from x2vlm.models.x2vlm import build_model
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.stores.calls import StoreFiles
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.loop import fit
from x2vlm.train.metrics import read_metrics
from x2vlm.train.progress import _slowest, console_line, rank_times
from x2vlm.train.ranks import Ranks
from x2vlm.train.recording import spikes
from x2vlm.train.recording.event_files import EventFiles
from x2vlm.train.recording.spikes import LossLevel
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
    for word in ("loss=", "grad_norm=", "lr=", "texts/s=", "images/s=", "tokens/s=", "data_wait=", "peak_gb=", "eta="):
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


def test_the_console_says_when_the_run_will_be_done():
    line = {
        "step": 9, "loss": 1.0, "lr": 1e-4, "seconds": 0.5, "texts_per_second": 1.0, "images_per_second": 1.0,
        "tokens_per_second": 1.0, "flops_executed": 1.0, "flops_reference": 1.0, "data_wait_percent": 0.0,
        "peak_memory_bytes": 1,
    }  # fmt: skip
    assert console_line(line, 20, 2 * 86400 + 3 * 3600 + 61).endswith(" eta=2d3:01:01")
    assert console_line(line, 20, 59.7).endswith(" eta=0:01:00")
    slow = {"data_wait_max_percent": 40.0, "busy_mean_seconds": 0.1, "busy_max_seconds": 0.25, "slowest_rank": 3}
    assert " data_wait_max=40.0% busy_ms=100/250max slowest_rank=3 eta=" in console_line(line | slow, 20, 1.0)


@pytest.mark.parametrize(
    ("waits", "busy", "slowest"), [([0.1, 0.5, 0.1], [0.2] * 3, 1), ([0.0] * 3, [0.1, 0.1, 0.4], 2)]
)
def test_the_slowest_rank_is_named(waits, busy, slowest):
    """From the means over the ranks, as an all-reduce gives them."""
    of_rank = [rank_times(Ranks(rank, 3), waits[rank], busy[rank]) for rank in range(3)]
    means = {name: sum(values[name] for values in of_rank) / 3 for name in of_rank[0]}
    found = _slowest(means, 1.0, 3)
    assert found["slowest_rank"] == slowest
    assert found["data_wait_max_percent"] == pytest.approx(100 * max(waits))
    assert found["busy_max_seconds"] == pytest.approx(max(busy))
    assert found["busy_mean_seconds"] == pytest.approx(sum(busy) / 3, abs=1e-4)
    assert rank_times(Ranks(), 1.0, 1.0) == _slowest({}, 1.0, 1) == {}


def _losses(num_steps, spikes=()):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(num_steps, generator=generator, dtype=torch.float64).tolist()
    return [
        4 * math.exp(-step / 500) + 3 + 0.1 * noise[step] + (5.0 if step in spikes else 0.0)
        for step in range(num_steps)
    ]


def test_a_loss_spike_is_told_and_noise_is_not():
    level = LossLevel(6.0)
    found = [step for step, loss in enumerate(_losses(2000, spikes=(50, 700, 701, 1500))) if level.add(loss)]
    assert found == [700, 701, 1500]  # nothing is judged in the first 100 steps
    assert level.add(float("nan")) is None
    level = LossLevel(6.0)
    risen = [level.add(loss + (4.0 if step >= 1000 else 0.0)) for step, loss in enumerate(_losses(2000))]
    alarms = [step for step, value in enumerate(risen) if value]
    assert alarms[0] == 1000
    assert alarms[-1] < 1200  # a lasting rise is the level after a while
    off = LossLevel(None)
    assert not any(off.add(loss) for loss in _losses(2000, spikes=(700,)))


def test_a_resumed_alarm_goes_on_exactly():
    losses = _losses(900, spikes=(700,))
    whole, first = LossLevel(6.0), LossLevel(6.0)
    told = [whole.add(loss) for loss in losses]
    before = [first.add(loss) for loss in losses[:650]]
    resumed = LossLevel(6.0, json.loads(json.dumps(first.state)))
    assert before + [resumed.add(loss) for loss in losses[650:]] == told
    assert resumed.state == whole.state


def test_a_spike_in_a_run_names_its_samples(watched, tmp_path, caplog, monkeypatch):
    """A model that is thrown off by its own learning rate: the metrics and the log have the samples of that step."""
    monkeypatch.setattr(spikes, "MEMORY_STEPS", 2)
    _, _, loader = watched
    model = toy_model()

    def jolt(step):
        if step == 3:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(10.0)

    config, folder = CONFIG.model_copy(update={"steps": 6}), tmp_path
    store, runtime = CheckpointStore(f"{folder}/checkpoints"), TrainRuntime(loss_spike=0.5)
    fit(model, loader, config, Ranks(), store, f"{folder}/metrics.jsonl", on_step=jolt, runtime=runtime)
    found = [line for line in read_metrics(folder / "metrics.jsonl") if "loss_spike" in line]
    assert 4 in [line["step"] for line in found]
    for line in found:
        assert line["keys"] == {name: sorted(set(batch.keys)) for name, batch in loader[line["step"]].batches.items()}
        assert line["loss_spike"] > 0.5
        assert f"loss_spike step={line['step']} " in caplog.text
        assert line["keys"]["image"][0] in caplog.text


def test_event_files_need_their_package_and_say_which(tmp_path):
    if importlib.util.find_spec("tensorboard") is not None:
        pytest.skip("tensorboard is installed")
    with pytest.raises(
        MissingPackage, match=r"train_runtime.tensorboard needs the package tensorboard.*x2vlm\[tensorboard\]"
    ):
        EventFiles(str(tmp_path), 0)


class FakeWriter:
    """What torch's writer does as far as files are concerned."""

    def __init__(self, folder, purge_step, filename_suffix):
        self._path = Path(folder) / f"events{filename_suffix}"
        self._lines = [f"purge {purge_step}"]

    def add_scalar(self, name, value, step):
        self._lines.append(f"{step} {name} {value}")

    def flush(self):
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n".join(self._lines))

    close = flush


@pytest.mark.parametrize("is_local", [True, False])
def test_event_files_are_written_once_each(tmp_path, monkeypatch, is_local):
    """The rules of upload, with a writer that stands for the package's."""
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    uri = str(tmp_path / "events") if is_local else f"memory://{tmp_path.name}/events"
    events, files = EventFiles(uri, 7), StoreFiles(uri)
    events.write({"step": 7, "loss": 1.5, "keys": {"image": ["a"]}, "flag": True})
    events.flush()
    events.write({"step": 8, "loss": 1.25})
    events.close()
    contents = [files.read(name).decode().splitlines() for name in files.names()]
    if is_local:
        assert contents == [["purge 7", "7 loss 1.5", "8 loss 1.25"]]
    else:
        assert contents == [["purge 7", "7 loss 1.5"], ["purge None", "8 loss 1.25"]]


def test_event_files_can_be_read_by_tensorboard(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = EventFiles(str(tmp_path), 0)
    for step in range(3):
        events.write({"step": step, "image/contrastive": 5.0 - step})
    events.close()
    found = accumulators.EventAccumulator(str(tmp_path)).Reload().Scalars("image/contrastive")
    assert [(point.step, point.value) for point in found] == [(0, 5.0), (1, 4.0), (2, 3.0)]
