"""Jobs without an experiment: fine-tune on files, evaluate a folder, go on after a kill; and runs that fail in part."""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import driver
from pipelines.driver import tasks
from pipelines.driver.experiment import run_plan
from pipelines.flow.run.planner import plan
from pipelines.flow.stage import Count, Graph, Node, Part, PartResult, Stage
from pipelines.flow.store.store import Store
from tests.support.processes.jobs import ROOT, start
from tests.support.stages.task_files import write_labels
from tests.support.training.finetuning import toy_model_folder
from x2vlm.command_line import EXIT_DUE, JobParser
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError, StageFailed

QUICK = ("--epochs", "2", "--batch-size", "4", "--precision", "float32", "--inline")


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A model's folder, three tables and their photos."""
    folder = tmp_path_factory.mktemp("given")
    toy_model_folder(folder / "model")
    write_labels(folder)
    return folder


def finetune_options(given: Path, store: Path, *more: str) -> list[str]:
    files = [word for split in ("val", "test") for word in (f"--{split}", str(given / f"{split}.csv"))]
    words = [str(given / "model"), "--task", "classification", "--data", str(given / "train.csv"), *files]
    return [*words, "--store", str(store), *QUICK, *more]


def parsed(add, words: list[str]) -> argparse.Namespace:
    parser = JobParser(None)
    if add is driver.add_finetune_arguments:
        parser.add_argument("model")
    else:
        driver.add_run_arguments(parser, experiment_is_optional=True)
    add(parser)
    return parser.parse(words)


def finetune(given: Path, store: Path, *more: str) -> driver.Outcome:
    return tasks.finetune(parsed(driver.add_finetune_arguments, finetune_options(given, store, *more)))


def evaluate(*words: str) -> driver.Outcome:
    return tasks.evaluate(parsed(driver.add_evaluate_arguments, ["--inline", *words]))


@pytest.fixture(scope="module")
def done(given, tmp_path_factory) -> driver.Outcome:
    return finetune(given, tmp_path_factory.mktemp("done") / "store")


def test_a_model_and_a_table_come_out_of_two_files(given, done):
    assert done.text.splitlines()[1].startswith("classification  test   accuracy")
    (line,) = done.data["model"]
    folder = Path(line.split()[-1])
    assert json.loads((folder / "task.json").read_text())["task"] == "classification"
    (result,) = done.data["results"].values()
    assert (result["split"], result["num_examples"]) == ("test", 8)
    assert (result["selection"]["label"], result["selection"]["splits"]) == (
        "best epoch on the validation split",
        ["val"],
    )
    store = folder.parents[3]
    again = evaluate(
        "--model", str(folder), "--task", "classification", "--data", str(given / "test.csv"), "--store", str(store)
    )
    assert again.data["results"]["evaluate/classification"]["metrics"] == result["metrics"]
    assert again.data["results"]["evaluate/classification"]["selection"] == result["selection"]


def test_a_row_that_is_dropped_is_told_with_its_rule(given, done, tmp_path):
    folder = Path(done.data["model"][0].split()[-1])
    lines = (given / "test.csv").read_text().splitlines()
    assert lines[0] == "id,image,text,label"
    (given / "torn.csv").write_text("\n".join([*lines, f"torn,{lines[1].split(',')[1]},,"]) + "\n")
    words = ["--model", str(folder), "--task", "classification", "--data", str(given / "torn.csv")]
    told = evaluate(*words, "--store", str(tmp_path / "store")).text
    (line,) = [line for line in told.splitlines() if line.startswith("dropped")]
    assert line.startswith("dropped  1 of 9 rows of test-0000")
    assert Path(line.split(": ")[1].removesuffix(" says which")).is_file()


def test_a_dry_run_does_nothing_and_says_what_is_due(given, tmp_path):
    outcome = finetune(given, tmp_path / "store", "--dry-run")
    assert outcome.exit_code == EXIT_DUE
    assert [node["key"] for node in outcome.data["nodes"]] == [
        f"{stage}/classification" for stage in ("task_data", "finetune", "evaluate")
    ]
    assert not (tmp_path / "store" / "parts").exists()


def test_killed_in_the_evaluation_the_same_command_gives_the_same_table(given, done, tmp_path):
    command = [sys.executable, str(ROOT / "jobs" / "finetune.py"), *finetune_options(given, tmp_path / "store")]
    process = start(command, OMP_NUM_THREADS="1")
    assert process.stderr is not None
    for line in process.stderr:
        if "event=node_started node=evaluate/" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    again = finetune(given, tmp_path / "store")
    assert again.data["results"] == done.data["results"]
    assert again.data["table"] == done.data["table"]
    trained = list((tmp_path / "store" / "state" / "finetune").iterdir())
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--preset", "vqa2_bse"], "no preset is called 'vqa2_bse'"),
        (["--option", "num_images"], "write name=value"),
        (["--option", "num_imges=2"], "did you mean `num_images`"),
        (["--answers", "/nowhere.json"], "/nowhere.json: no such file"),
        (["--selection", "best"], "selection"),
        (["--task", "ovad_", "--reader", "own_labels"], "no task is called 'ovad_'"),
    ],
)
def test_wrong_words_are_answered_before_anything_runs(given, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        finetune(given, tmp_path / "store", *change)
    assert not (tmp_path / "store" / "parts").exists()


def test_a_model_that_is_none_is_told(given, tmp_path):
    words = ["--task", "classification", "--data", str(given / "test.csv"), "--store", str(tmp_path / "store")]
    with pytest.raises(ConfigError, match=r"is no model folder: config\.json, model\.safetensors"):
        evaluate("--model", str(given / "photos"), *words)
    (tmp_path / "model.th").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"holds no vocabulary; give its vocab.txt with --vocabulary"):
        evaluate("--model", str(tmp_path / "model.th"), *words)


class Number(FrozenConfig):
    """Of a toy evaluation; a negative one fails."""

    value: float


def _toy(config, inputs, part, out):
    if config.value < 0:
        raise ConfigError(f"value is {config.value}")
    return PartResult({"rows": Count(1, 1)}, summary={"metrics": {"toy/accuracy": config.value}})


EVALUATION = Stage("evaluate", 1, Number, (), lambda config, inputs: [Part("all")], _toy)


def test_a_task_that_fails_leaves_the_others_and_the_last_lines_name_it(tmp_path):
    values = {"good": 12.5, "bad": -1.0, "worse": -2.0, "fine": 50.0}
    graph = Graph([Node(f"evaluate/{name}", EVALUATION, Number(value=value), {}) for name, value in values.items()])
    store = Store(str(tmp_path / "store"))
    options = argparse.Namespace(inline=True, num_cpus=None, tracking_uri=None)
    with pytest.raises(StageFailed) as caught:
        run_plan("toy", graph, plan(graph, store, "toy"), store, options)
    lines = str(caught.value).splitlines()
    assert lines[0] == "evaluate/bad, part all: ConfigError: value is -1.0"
    assert "evaluate/good: toy/accuracy 12.5" in lines
    assert "evaluate/fine: toy/accuracy 50" in lines
    assert lines[-2:] == [
        "evaluate/bad failed: ConfigError: value is -1.0",
        "evaluate/worse failed: ConfigError: value is -2.0",
    ]
    assert {node.key for node in plan(graph, store, "toy").selected if node.finished is None} == {
        "evaluate/bad",
        "evaluate/worse",
    }


@pytest.mark.parametrize("job", ["finetune.py", "evaluate.py"])
def test_every_command_of_the_help_is_one_that_the_job_takes(job):
    """Parsed alone: the files that the examples name are not there."""
    text = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / job), "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    commands = [line.split()[2:] for line in text.splitlines() if line.startswith(f"python jobs/{job}")]
    assert len(commands) >= 3
    for words in commands:
        parsed(driver.add_finetune_arguments if job == "finetune.py" else driver.add_evaluate_arguments, words)
