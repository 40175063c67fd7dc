"""Gradients over processes: what is sent, that it is sent early and in one order, and what comes of it."""

import hashlib
import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.support.training.corpus import DATA, MODEL, TOKENIZER, make_shards
from tests.support.training.processes import on_ranks
from x2vlm.cost.scaling import contrastive_bytes, gradient_bytes
from x2vlm.data.loading.loader import StepLoader
from x2vlm.data.loading.shard_set import ShardFiles
from x2vlm.errors import X2VLMError
from x2vlm.train.gradients import GradientBuckets
from x2vlm.train.ranks import Ranks, current_ranks


def _net():
    torch.manual_seed(3)
    return nn.ModuleDict({name: nn.Linear(6, 6) for name in ("first", "second", "box", "last")})


def _loss(net, rows, with_box):
    hidden = net["second"](net["first"](rows).tanh())
    return net["last"](net["box"](hidden) if with_box else hidden).pow(2).mean()


class Wire:
    """Counts what torch.distributed is given, and in which order it comes; calls through."""

    def __init__(self):
        self.events, self.bytes, self.gathered = [], 0, 0
        self._real = dist.all_reduce, dist.all_gather

    def __enter__(self):
        dist.all_reduce, dist.all_gather = self._reduce, self._gather
        return self

    def __exit__(self, *_):
        dist.all_reduce, dist.all_gather = self._real

    def _reduce(self, tensor, *arguments, **options):
        self.events.append(f"send {tensor.numel()}")
        self.bytes += tensor.nbytes
        return self._real[0](tensor, *arguments, **options)

    def _gather(self, parts, tensor, *arguments, **options):
        self.gathered += tensor.nbytes
        return self._real[1](parts, tensor, *arguments, **options)


def mean_gradients(rank, world_size, wire, with_box):
    """Gradients of two steps, the bytes of the second, and what happened in it."""
    net = _net()
    parameters = list(net.parameters())
    buckets = GradientBuckets(parameters, current_ranks(), wire, bucket_numbers=40)
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(rank))
    with Wire() as sent:
        for _ in range(2):
            sent.events.clear()
            sent.bytes = 0
            buckets.begin("graph")
            loss = _loss(net, rows, with_box)
            net["first"].weight.register_hook(lambda gradient: sent.events.append("first layer's backward"))
            loss.backward()
            num = buckets.finish()
    result = {name: value.grad / world_size for name, value in net.named_parameters() if value.grad is not None}
    early = sent.events.index("first layer's backward") if world_size > 1 else 0
    return result | {
        "bytes": torch.tensor(sent.bytes),
        "promised": torch.tensor(buckets.bytes_per_step),
        "before": torch.tensor(early),
        "num": torch.tensor(num),
    }


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_means_equal_one_process_with_all_rows_and_bytes_the_formula(world_size):
    """C7: every parameter is sent once a step as float32, most of it before the backward pass is over."""
    results = on_ranks(mean_gradients, world_size, "float32", True)
    net = _net()
    rows = [torch.randn(8, 6, generator=torch.Generator().manual_seed(rank)) for rank in range(world_size)]
    _loss(net, torch.cat(rows), True).backward()
    num_numbers = sum(parameter.numel() for parameter in net.parameters())
    for result in results:
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(result[name], parameter.grad)
            assert torch.equal(result[name], results[0][name])
        assert result["promised"] == 4 * num_numbers
        assert result["bytes"] == (4 * num_numbers if world_size > 1 else 0)
        assert world_size == 1 or result["before"] >= 3  # of four buckets


def test_what_takes_no_part_has_no_gradient_and_blocks_nobody():
    for result in on_ranks(mean_gradients, 2, "float32", False):
        assert "box.weight" not in result
        assert result["num"] == 6
        assert result["before"] >= 3  # the second step knows that nothing of the box layer will come


def test_half_the_bytes_on_the_wire_round_the_gradients():
    exact, rounded = (on_ranks(mean_gradients, 2, wire, True)[0] for wire in ("float32", "bfloat16"))
    assert 2 * rounded["bytes"] == exact["bytes"]
    for name in ("first.weight", "last.bias"):
        assert rounded[name].dtype == torch.float32
        assert not torch.equal(rounded[name], exact[name])
        torch.testing.assert_close(rounded[name], exact[name], rtol=3 * 2**-8, atol=2**-8 * exact[name].abs().max())


def two_backwards(rank, world_size):
    """The sums of the first backward of a start, which sends all at its end, and of a later one, which does not."""
    net = _net()
    buckets = GradientBuckets(list(net.parameters()), current_ranks(), bucket_numbers=40)
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(rank))
    sums = []
    for _ in range(3):
        buckets.begin("graph")
        _loss(net, rows, True).backward()
        buckets.finish()
        sums.append(torch.cat(buckets.buffers))
    return sums


def test_the_first_backward_of_a_start_adds_in_the_order_of_all_others():
    """With three processes the order shows in the bits, and a start is where torch's own DDP changes it."""
    for first, second, third in on_ranks(two_backwards, 3):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_buckets_follow_from_the_parameters_alone():
    parameters = [nn.Parameter(torch.zeros(size)) for size in (5, 30, 2, 9, 1)]
    buckets = GradientBuckets(parameters, Ranks(), bucket_numbers=10)
    assert [buffer.numel() for buffer in buckets.buffers] == [10, 32, 5]  # from the back: 1+9, 2+30, 5
    assert math.fsum(buffer.numel() for buffer in buckets.buffers) * 4 == buckets.bytes_per_step


def test_a_gradient_after_its_bucket_has_left_is_an_error_and_not_lost():
    net = _net()
    buckets = GradientBuckets(list(net.parameters()), Ranks(), bucket_numbers=10)
    rows = torch.ones(2, 6)
    buckets.begin("same name")
    _loss(net, rows, False).backward()
    buckets.finish()
    buckets.begin("same name")
    with pytest.raises(X2VLMError, match="arrived after its bucket had been sent"):
        _loss(net, rows, True).backward()
    assert buckets._num_sent


def test_other_graphs_may_take_turns():
    """Steps with and without the box layer alternate: none inherits the other's gradients."""
    net = _net()
    buckets = GradientBuckets(list(net.parameters()), Ranks(), bucket_numbers=10)
    for number in range(6):
        with_box = number % 2 == 0
        rows = torch.full((2, 6), float(number + 1))
        buckets.begin(with_box)
        _loss(net, rows, with_box).backward()
        assert buckets.finish() == (8 if with_box else 6)
        plain = _net()
        _loss(plain, rows, with_box).backward()
        for name, parameter in net.named_parameters():
            expected = dict(plain.named_parameters())[name].grad
            assert (parameter.grad is None) == (expected is None), name
            assert expected is None or torch.equal(parameter.grad, expected)


def five_steps(rank, world_size, tars):
    """Bytes of a real optimizer step, and a digest of the weights after five of them."""
    from x2vlm.models.x2vlm import build_model
    from x2vlm.train.config import TrainConfig
    from x2vlm.train.optim import build_optimizer
    from x2vlm.train.step import Trainer, train_step

    config = TrainConfig(steps=10, warmup_steps=1, precision="float32")
    shards = [ShardFiles(Path(tar), Path(tar).with_suffix(".parquet")) for tar in tars]
    loader = StepLoader(shards, DATA, TOKENIZER, 32, 16, rank, world_size)
    torch.manual_seed(0)
    model = build_model(MODEL).train()
    streams = {stream.label: (1.0, True) for stream in DATA.streams}
    trainer = Trainer(model, build_optimizer(model, config.optimizer), config, current_ranks(), DATA.seed, streams)
    for step in range(5):
        with Wire() as sent:
            numbers = train_step(trainer, loader[step], {"texts": 1.0})
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.state_dict().values()))
    return {
        "weights": digest.hexdigest(),
        "bytes": sent.bytes,
        "gathered": sent.gathered,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_numbers": len(numbers.names),
    }


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_real_step_sends_what_the_formula_says_and_weights_stay_equal(tmp_path, world_size):
    """C7. All-reduce: gradients 4 P and 8 bytes a number. Gathered for the contrastive loss, by process: features of
    B / W images and texts of E float32 for each stream, and 8 bytes a row for image ids (regions need none)."""
    tars = [str(files.media) for files in make_shards(tmp_path)]
    results = on_ranks(five_steps, world_size, tars)
    assert len({result["weights"] for result in results}) == 1
    for result in results:
        num_reduced = result["num_numbers"] - 2  # grad_norm and finite are the same everywhere already
        rows = {stream.kind: stream.batch_size // world_size for stream in DATA.streams}
        features = sum(2 * count * MODEL.embed_dim * 4 for count in rows.values())
        ids = 8 * (rows["image"] + rows["video"])
        alone = world_size == 1
        assert result["bytes"] == (0 if alone else 4 * result["num_parameters"] + 8 * num_reduced)
        assert result["gathered"] == (0 if alone else features + ids)
        # The scaling model's formulas: what a ring moves of what is handed to it, and what each process receives.
        numbers_only = result["bytes"] - (0 if alone else 8 * num_reduced)
        assert gradient_bytes(result["num_parameters"], world_size) == 2 * (world_size - 1) * numbers_only // world_size
        received = sum(contrastive_bytes(count, world_size, 1, MODEL.embed_dim) for count in rows.values())
        assert received == (0 if alone else (world_size - 1) * features)
