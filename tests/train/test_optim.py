"""Groups, AdamW and schedule against the reference's numbers."""

import json

import pytest
import torch
from safetensors.torch import load, save
from torch.testing import assert_close

from tests.support.models.golden_cases import LOSS_NAMES, read_case, read_model, to_batch
from tests.support.models.tiny import tiny_model
from x2vlm.config import parse_config, read_yaml
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.reference import export_reference_state, reference_names
from x2vlm.objectives.step import pretrain_losses
from x2vlm.train.config import TrainConfig
from x2vlm.train.optim import (
    OptimizerConfig,
    ReferenceAdamW,
    build_optimizer,
    load_optimizer_tensors,
    lr_factor,
    new_parameter_names,
    optimizer_tensors,
    parameter_groups,
)
from x2vlm.train.step import Trainer


@pytest.fixture(scope="module")
def golden_groups(golden_dir):
    return json.loads((golden_dir / "param_groups.json").read_text())


def test_groups_equal_the_reference(golden_dir, golden_groups):
    model = read_model(golden_dir)
    groups = parameter_groups(model, OptimizerConfig(), golden_groups["new_parameters"])
    names = reference_names(model)
    ours = {
        names[name]: {"group": index, "lr": group["lr"], "weight_decay": group["weight_decay"]}
        for index, group in enumerate(groups)
        for name, _ in group["params"]
    }
    assert ours == golden_groups["groups"]


def test_new_by_default_are_the_heads_and_the_cross_attention(golden_dir, golden_groups):
    new = set(new_parameter_names(read_model(golden_dir)))
    assert set(golden_groups["new_parameters"]) <= new
    assert {name.split(".")[5] for name in new - set(golden_groups["new_parameters"])} == {"crossattention"}


def test_frame_position_is_new_and_decays():
    group = parameter_groups(tiny_model(num_frames=2), OptimizerConfig())[2]
    assert group["name"] == "new_decay"
    assert "frame_position" in dict(group["params"])


def test_rates_by_part_win_over_the_multiplier():
    model = tiny_model()
    config = OptimizerConfig(lr=4e-5, vision_lr=2e-5, text_lr=8e-5)
    lrs = {name: g["lr"] for g in parameter_groups(model, config) for name, _ in g["params"]}
    assert lrs["vision.trunk.cls_token"] == 2e-5
    assert lrs["fusion.layers.0.cross_attention.query.weight"] == 8e-5
    assert lrs["match_head.0.weight"] == 8e-5
    assert lrs["temperature"] == 8e-5
    assert len(lrs) == len(list(model.named_parameters()))
    assert config.lr * config.lr_multiplier == 8e-5


def test_vision_rate_alone_is_an_error():
    with pytest.raises(ValueError, match="set both or none"):
        OptimizerConfig(vision_lr=1e-5)
    unchecked = OptimizerConfig.model_construct(vision_lr=1e-5)
    with pytest.raises(ConfigError, match="set both or none"):
        parameter_groups(tiny_model(), unchecked)


def test_unknown_new_parameter_is_an_error():
    with pytest.raises(ConfigError, match="nonsense"):
        parameter_groups(tiny_model(), OptimizerConfig(), ["nonsense"])


def test_five_steps_follow_the_reference(golden_dir, golden_groups):
    model, case = read_model(golden_dir), read_case(golden_dir / "trajectory_image")
    image, info = read_case(golden_dir / "image"), case.info
    config = OptimizerConfig(
        lr=info["lr"],
        lr_multiplier=info["lr_mult"],
        weight_decay=info["weight_decay"],
        betas=tuple(info["betas"]),
        eps=info["eps"],
    )
    optimizer = build_optimizer(model, config, golden_groups["new_parameters"])
    for expected in info["history"]:
        losses = pretrain_losses(model, to_batch(image), image.negatives)
        for name, value in losses.items():
            assert value.item() == pytest.approx(expected["image." + LOSS_NAMES[name]], abs=2e-5), name
        optimizer.zero_grad()
        sum(losses.values()).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), info["clip_grad_norm"])
        assert norm.item() == pytest.approx(expected["grad_norm_before_clip"], rel=1e-3)
        optimizer.step()
    state = export_reference_state(model)
    for name, expected in case.tensors.items():
        assert_close(state[name.removeprefix("after.")], expected, atol=2e-5, rtol=0)


def test_reference_adamw_equals_its_formula():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(4, dtype=torch.float64))
    optimizer = ReferenceAdamW([weight], lr=0.1, betas=(0.9, 0.98), eps=0.3, weight_decay=0.2)
    w, m, v = weight.detach().clone(), torch.zeros(4), torch.zeros(4)
    for step in range(1, 4):
        weight.grad = torch.randn(4, dtype=torch.float64)
        m, v = 0.9 * m + 0.1 * weight.grad, 0.98 * v + 0.02 * weight.grad**2
        w = w - 0.1 * (1 - 0.98**step) ** 0.5 / (1 - 0.9**step) * m / (v.sqrt() + 0.3)
        w = w - 0.1 * 0.2 * w
        optimizer.step()
        assert_close(weight.detach(), w)


def test_parameters_without_a_gradient_stay():
    weight, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = ReferenceAdamW([weight, idle])
    weight.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(idle, torch.ones(2))
    assert idle not in optimizer.state


@pytest.mark.parametrize("adamw", ["reference", "torch"])
def test_training_goes_on_identically_from_saved_tensors(adamw):
    config = OptimizerConfig(lr=1e-2, adamw=adamw)

    def train(model, optimizer, seeds):
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    straight = tiny_model()
    train(straight, build_optimizer(straight, config), range(4))
    broken = tiny_model()
    optimizer = build_optimizer(broken, config)
    train(broken, optimizer, range(2))
    file = save({name: value.contiguous() for name, value in optimizer_tensors(optimizer).items()})
    resumed = tiny_model()
    resumed.load_state_dict(broken.state_dict())
    optimizer = build_optimizer(resumed, config)
    load_optimizer_tensors(optimizer, load(file))
    train(resumed, optimizer, range(2, 4))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_state_of_another_model_is_refused():
    optimizer = build_optimizer(tiny_model(), OptimizerConfig())
    with pytest.raises(ConfigError, match="belongs to no parameter"):
        load_optimizer_tensors(optimizer, {"other.weight/exp_avg": torch.zeros(1)})
    with pytest.raises(ConfigError, match="has shape"):
        load_optimizer_tensors(optimizer, {"vision_proj.bias/exp_avg": torch.zeros(1)})


def test_state_dict_round_trip_keeps_the_state():
    model = tiny_model()
    optimizer = build_optimizer(model, OptimizerConfig())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    other = build_optimizer(model, OptimizerConfig())
    other.load_state_dict(optimizer.state_dict())
    for name, value in optimizer_tensors(optimizer).items():
        assert torch.equal(value, optimizer_tensors(other)[name]), name


def test_schedule_equals_the_reference(golden_dir):
    cases = json.loads((golden_dir / "data" / "schedule" / "case.json").read_text())["cases"]
    assert len(cases) == 6
    for case in cases:
        # After their restart of the schedule the configured minimum is ignored.
        min_rate = 0.0 if case.get("after_pretraining_reinit") else case["settings"].get("min_rate", 0.0)
        for step, lr in case["lr_used_at_step"].items():
            rate = lr_factor(int(step), case["resolved_warmup"], case["total_steps"], min_rate, "reference")
            assert rate * case["settings"]["lr"] == pytest.approx(lr, abs=1e-12)
            if not min_rate:
                assert lr_factor(int(step), case["resolved_warmup"], case["total_steps"]) == pytest.approx(rate)


def test_schedule_reaches_its_minimum_and_never_exceeds_the_base_rate():
    lrs = [lr_factor(step, 10, 100, min_rate=0.1) for step in range(120)]
    assert lrs[0] == 0
    assert max(lrs) == lrs[10] == 1
    assert lrs[100:] == pytest.approx([0.1] * 20)


@pytest.mark.parametrize("adamw", ["reference", "torch"])
def test_a_step_with_found_inf_never_happened(adamw):
    """Weights, moments and counts as without it, even where it is the first; then all goes on as if it had not been."""
    config = OptimizerConfig(lr=1e-2, adamw=adamw)

    def train(seeds, skipped=()):
        model = tiny_model()
        optimizer = build_optimizer(model, config)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                gradient = torch.randn(parameter.shape, generator=generator)
                parameter.grad = torch.zeros_like(gradient) if seed in skipped else gradient
            optimizer.found_inf = torch.tensor(float(seed in skipped))
            optimizer.step()
        return dict(model.named_parameters()), optimizer_tensors(optimizer)

    weights, state = train(range(6), skipped=(0, 3, 4))
    expected_weights, expected_state = train((1, 2, 5))
    assert state.keys() == expected_state.keys()
    assert all(torch.equal(state[name], value) for name, value in expected_state.items())
    assert all(torch.equal(weights[name], value) for name, value in expected_weights.items())


def test_parameters_that_join_later_have_counts_of_their_own():
    """The second weight makes 2 of 4 steps: as if it had been trained alone, saved and loaded in between."""
    torch.manual_seed(0)
    gradients = torch.randn(4, 2, 3)

    def train(used):
        weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = ReferenceAdamW([("first", weights[0]), ("second", weights[1])], lr=0.1)
        for step in range(4):
            for number, weight in enumerate(weights):
                weight.grad = gradients[step, number].clone() if (step, number) in used else None
            optimizer.step()
            tensors = load(save(optimizer_tensors(optimizer)))
            load_optimizer_tensors(optimizer, tensors)
        return weights

    mixed = train({(0, 0), (1, 0), (1, 1), (2, 0), (3, 0), (3, 1)})
    alone = train({(1, 1), (3, 1)})
    assert torch.equal(mixed[1], alone[1])
    assert torch.equal(mixed[0], train({(step, 0) for step in range(4)})[0])


def test_unfused_adamw_of_torch_is_still_to_be_had():
    fused, plain = (
        build_optimizer(tiny_model(), OptimizerConfig(adamw="torch", fused=fused)) for fused in (True, False)
    )
    assert fused.defaults["fused"]
    assert not plain.defaults["fused"]


def test_the_formula_of_the_reference_can_be_chosen_in_a_file(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("{steps: 100, warmup_steps: 10, min_rate: 0.1, rate_parity: reference}")
    config = parse_config(TrainConfig, read_yaml(path), str(path))
    trainer = object.__new__(Trainer)
    for parity, at_warmup, at_end in (("reference", 91 / 90, 1 / 9), ("fixed", 1.0, 0.1)):
        trainer.config = config.model_copy(update={"rate_parity": parity})
        assert trainer.lr_factor_at(10) == pytest.approx(at_warmup)
        assert trainer.lr_factor_at(100) == pytest.approx(at_end)
    path.write_text("{rate_parity: reference}")
    with pytest.raises(ConfigError, match="rate_parity has no effect without a min_rate"):
        parse_config(TrainConfig, read_yaml(path), str(path))
