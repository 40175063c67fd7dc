"""The loop: what one step does against a plain version of it, and what becomes of a run that is disturbed."""

import threading

import pydantic
import pytest
import torch
from safetensors.torch import load_file

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.runs import CONFIG, run, toy_model
from x2vlm.data.loading.loader import StepLoader
from x2vlm.errors import CorruptArtifact
from x2vlm.inference.pretrained import load_pretrained, save_weights
from x2vlm.models.checkpoints.weights import own_tensors
from x2vlm.objectives.config import ObjectiveConfig
from x2vlm.objectives.step import pretrain_losses
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.config import TrainRuntime
from x2vlm.train.optim import build_optimizer
from x2vlm.train.ranks import Ranks
from x2vlm.train.step import Trainer, train_step


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards"), broken=(3,))


@pytest.fixture(scope="module")
def straight(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    return run(folder, shards)


def test_a_damaged_newest_checkpoint_falls_back_and_ends_the_same(straight, shards, tmp_path):
    class StopError(Exception):
        pass

    def stop(step):
        if step == 6:
            raise StopError

    with pytest.raises(StopError):
        run(tmp_path, shards, on_step=stop)
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    assert store.steps() == [3, 6]
    weights_file = tmp_path / "checkpoints/step-00000006/model.safetensors"
    data = bytearray(weights_file.read_bytes())
    data[-5] ^= 1
    weights_file.write_bytes(bytes(data))
    weights, metrics = run(tmp_path, shards)
    assert metrics == straight[1]
    assert all(torch.equal(weights[name], value) for name, value in straight[0].items())


def test_a_finished_run_makes_no_more_steps(shards, tmp_path, straight):
    run(tmp_path, shards)
    steps = []
    weights, _ = run(tmp_path, shards, on_step=steps.append)
    assert steps == []
    assert all(torch.equal(weights[name], value) for name, value in straight[0].items())


@pytest.mark.parametrize(("minutes", "saved"), [(1e-9, [*range(1, 9)]), (1e9, [8])])
def test_checkpoints_by_time_come_when_it_is_over_and_at_the_end(straight, shards, tmp_path, minutes, saved):
    runtime = TrainRuntime(checkpoint_every=None, checkpoint_minutes=minutes, keep_checkpoints=9)

    def wait(step):  # a checkpoint that is still being written puts the next one off
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()

    weights, metrics = run(tmp_path, shards, on_step=wait, runtime=runtime)
    assert CheckpointStore(str(tmp_path / "checkpoints")).steps() == saved
    assert metrics == straight[1]
    assert all(torch.equal(weights[name], value) for name, value in straight[0].items())


def test_a_run_without_any_rule_for_checkpoints_is_refused():
    with pytest.raises(pydantic.ValidationError, match="without both a failure loses the whole run"):
        TrainRuntime(checkpoint_every=None)


def test_losses_fall(shards, tmp_path):
    config = CONFIG.model_copy(update={"steps": 60, "warmup_steps": 4})
    _, metrics = run(tmp_path, shards, config, runtime=TrainRuntime(checkpoint_every=60))
    for name in ("loss", "image/masked_lm", "region/masked_lm", "video/masked_lm", "region/contrastive"):
        values = [line[name] for line in metrics]
        assert sum(values[-10:]) < 0.95 * sum(values[:10]), name


def test_one_step_is_the_plain_sum_of_losses(shards):
    """A ten-line version with torch's own pieces, stream by stream, moves the weights to the same place.

    Nothing random: without dropout, and without the matching loss, whose negatives are drawn.
    """
    loader = StepLoader(shards, DATA, TOKENIZER, 32, 16)
    weights = {"image": 1.0, "region": 0.5, "video": 2.0}
    objective = ObjectiveConfig(matching=False)
    config = CONFIG.model_copy(update={"warmup_steps": 0, "objective": objective})
    ours, plain = toy_model().eval(), toy_model().eval()
    trainer = Trainer(
        ours,
        build_optimizer(ours, config.optimizer),
        config,
        Ranks(),
        DATA.seed,
        {name: (value, True) for name, value in weights.items()},
    )
    data = loader[0]
    values = train_step(trainer, data).read()

    optimizer = build_optimizer(plain, config.optimizer)
    plain.clamp_temperature()
    losses = {name: pretrain_losses(plain, batch, config=objective) for name, batch in data.batches.items()}
    total = sum(weights[name] * sum(parts.values()) for name, parts in losses.items())
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    loss = sum(weights[name.split("/")[0]] * value for name, value in values.items() if "/" in name)
    assert loss == pytest.approx(total.item(), abs=2e-5)
    assert values["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, value in own_tensors(plain).items():
        gradient = gradients.get(name)
        # AdamW's first step is lr * g / (|g| + 1e-8): of a gradient below that, the order of sums decides the quotient.
        settled = torch.ones_like(value, dtype=torch.bool) if gradient is None else gradient.abs() > 1e-7
        assert torch.allclose(own_tensors(ours)[name][settled], value[settled], atol=1e-6), name


def test_batches_without_matching_have_no_matching_loss(shards):
    loader = StepLoader(shards, DATA, TOKENIZER, 32, 16)
    config = CONFIG.model_copy(update={"stop_matching_at": 1})
    model = toy_model()
    streams = {"image": (1.0, False), "region": (1.0, True), "video": (1.0, True)}
    trainer = Trainer(model, build_optimizer(model, config.optimizer), config, Ranks(), DATA.seed, streams)
    first, second = train_step(trainer, loader[0]).read(), train_step(trainer, loader[1]).read()
    assert "image/matching" not in first
    assert "region/matching" in first
    assert not [name for name in second if name.endswith("/matching")]


def test_a_saved_model_comes_back_and_a_wrong_one_is_refused(tmp_path):
    model = toy_model().eval()
    save_weights(MODEL, own_tensors(model), tmp_path, {"steps": 3})
    loaded = load_pretrained(tmp_path / "config.json", tmp_path / "model.safetensors")
    assert loaded.config == MODEL
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert "word_head.decoder.weight" not in load_file(tmp_path / "model.safetensors")  # tied: stored once
    other = MODEL.model_copy(update={"embed_dim": 8})
    save_weights(other, own_tensors(model), tmp_path)
    with pytest.raises(CorruptArtifact, match=r"vision_proj\.weight"):
        load_pretrained(tmp_path / "config.json", tmp_path / "model.safetensors")
