"""The GPU benchmark runs from end to end without a GPU, at tiny sizes, and then reports no measurement."""

import json
import subprocess
import sys
import time

import pytest
import torch
from torch.nn.attention import SDPBackend

from tests.benchmarks.gpu import bench as bench_module
from tests.benchmarks.gpu.__main__ import COLUMNS, ENVIRONMENT, main, table
from tests.benchmarks.gpu.bench import NO_GPU, Bench, Timing, per_second
from tests.benchmarks.gpu.ceilings import cosine, eager, flex, fused
from tests.benchmarks.gpu.steps import LADDER, noise_of

HEAVY = ("ray", "mlflow", "open_clip", "webdataset", "av", "img2dataset")
MEASURED = (
    *COLUMNS,
    "noise",
    "least_ms",
    "most_ms",
    "terabytes_per_second",
    "first_step_seconds",
    "images_per_second",
    "real_tokens_per_second",
    "ms_without_loader",
)
GPU_ONLY = ("sdpa efficient", "padded keys", "sdpa cudnn", "flex")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory, project_root):
    """All parts in a separate process: its output, its JSON files, and the heavy packages it imported."""
    folder = tmp_path_factory.mktemp("gpu")
    code = (
        "import sys; from tests.benchmarks.gpu.__main__ import main; "
        f"sys.argv[1:] = ['--part', 'all', '--tiny', '--device', 'cpu', '--out', {str(folder)!r}]; "
        f"assert main() == 0; print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=project_root).stdout
    return folder, printed, {part: json.loads((folder / f"part{part}.json").read_text()) for part in "123"}


def test_it_runs_where_only_what_trains_is_installed(tiny_run):
    assert tiny_run[1].splitlines()[-1] == "HEAVY []"


def test_without_a_gpu_it_says_so_and_gives_no_number(tiny_run):
    _, printed, parts = tiny_run
    assert printed.count(NO_GPU) == len(parts)
    for part in parts.values():
        assert part["note"] == NO_GPU
        assert part["facts"]["torch"] == torch.__version__.split("+")[0] or part["facts"]["torch"] == torch.__version__
        for row in part["rows"]:
            assert all(row.get(key) is None for key in MEASURED), row
    table_lines = [line for line in printed.splitlines() if line.startswith(("R0", "GEMM", "loader"))]
    assert len(table_lines) == 5
    assert all(set(line[60:].split()) == {"-"} for line in table_lines)


def test_every_measurement_ran(tiny_run):
    folder, _, parts = tiny_run
    rows = {row["name"]: row for part in parts.values() for row in part["rows"]}
    for name, row in rows.items():
        assert ("refused" in row) == name.endswith(GPU_ONLY), row
        assert "left_out" not in row
    assert {variant.name for variant in LADDER} <= set(rows)
    assert rows["loader: end to end"]["last_losses_are_finite"] is True
    assert rows["losses and gradients: float32, reference graph"]["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    assert rows["losses and gradients: float32, reference graph"]["largest_loss_difference"] < 1e-5
    assert rows["losses and gradients: bfloat16, ours in float32"]["gradient_cosine"] > 0.99
    assert rows["image block: gradient of its position bias"]["gradient_cosine"] > 0.99
    for name in ("R0", "R5"):
        assert (folder / f"profile_{name}.txt").read_text().startswith(NO_GPU)


def test_rungs_execute_less_and_less(tiny_run):
    rows = {row["name"]: row for row in tiny_run[2]["2"]["rows"]}
    counts = [rows[variant.name]["executed_flop"] for variant in LADDER[:6]]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == counts[1] > counts[2] > counts[3] == counts[4] == counts[5]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_real_sizes_need_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--part", "1", "--out", str(tmp_path / "out")])
    assert main() == ENVIRONMENT
    assert NO_GPU in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_refusal_is_a_finding_and_a_fault_is_not(tmp_path):
    bench = Bench("1", tmp_path, "cpu", True, seconds=600)

    def refuse():
        raise torch.OutOfMemoryError("79 GiB are not enough\nsecond line")

    assert bench.measure("big", refuse)["refused"] == "OutOfMemoryError: 79 GiB are not enough"
    with pytest.raises(KeyError):
        bench.measure("broken", lambda: {}["missing"])
    assert [row["name"] for row in json.loads(bench.path.read_text())["rows"]] == ["big"]


def test_nothing_starts_when_the_time_is_up(tmp_path, monkeypatch):
    bench = Bench("2", tmp_path, "cpu", True, seconds=100)
    now = time.monotonic()
    monkeypatch.setattr(bench_module.time, "monotonic", lambda: now + 101)
    row = bench.measure("late", lambda: pytest.fail("it started"))
    assert "100 seconds" in row["left_out"]
    assert any("left" not in line and "late" in line for line in table(bench.path))


def test_rates_come_from_medians_in_milliseconds():
    assert per_second(256, Timing(64.0, 60.0, 90.0)) == 4000
    assert per_second(256, Timing()) is None


def test_rungs_are_compared_with_the_first_and_noise_is_said(tmp_path):
    bench = Bench("2", tmp_path, "cpu", True, seconds=600)
    first = bench.measure("R0", lambda: {"ms": 300.0})
    for name, milliseconds, speedup in (("R5", 100.0, 3.0), ("refused", None, None)):
        row = bench.measure(name, lambda ms=milliseconds: {"ms": ms})
        bench.compare(row, first)
        assert json.loads(bench.path.read_text())["rows"][-1]["speedup"] == speedup
    assert noise_of(0.97) == "3.0%"
    assert "INCONCLUSIVE" in noise_of(1.07)
    assert noise_of(None) is None


def test_cosine_sees_angle_not_size():
    one = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0]), "c": None}
    assert cosine(one, {"a": torch.tensor([6.0, 0.0]), "b": torch.tensor([0.0]), "c": None}) == pytest.approx(1)
    assert cosine(one, {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0]), "c": None}) == pytest.approx(0.6)
    with pytest.raises(ValueError, match="gradients"):
        cosine(one, {"a": torch.tensor([3.0, 0.0]), "b": None, "c": None})


@pytest.mark.parametrize("pad_keys", [False, True])
def test_aligned_biases_change_nothing(pad_keys):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 16) for _ in range(3))
    bias = torch.randn(3, 17, 17)
    found = fused(SDPBackend.MATH, pad_keys)(query, key, value, bias)
    torch.testing.assert_close(found, eager(query, key, value, bias), atol=1e-5, rtol=0)


@pytest.mark.slow  # importing the compiler takes 3 CPU seconds
def test_flex_attention_adds_the_bias_per_head_and_pair():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 17, 16) for _ in range(3))
    bias = torch.randn(3, 17, 17)
    torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad():
            found = flex(query, key, value, bias)
    finally:
        torch.compiler.set_stance("default")
    torch.testing.assert_close(found, eager(query, key, value, bias), atol=1e-5, rtol=0)
