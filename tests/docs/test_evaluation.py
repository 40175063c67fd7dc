"""docs/evaluation.md: its tables are those of the code, and its example in Python runs as it stands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from pipelines.evaluations import EvaluationConfig
from x2vlm.tasks.presets import PRESETS
from x2vlm.tasks.presets.preset import OURS

PAGE = Path(__file__).resolve().parents[2] / "docs/evaluation.md"


def preset_table() -> str:
    """The table of presets as the page has it."""
    lines = [
        "| preset | task | epochs | batch | pixels | tokens | rate | where from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in PRESETS.values():
        tuning = one.finetune
        values = [""] * 5
        if tuning is not None:
            values = [
                str(tuning.epochs),
                str(tuning.batch_size),
                str(tuning.image_res),
                str(tuning.max_tokens),
                f"{tuning.optimizer.lr:.0e}".replace("e-0", "e-"),
            ]
        lines.append(f"| `{one.name}` | `{one.task}` | {' | '.join(values)} | {one.source} |")
    return "\n".join(lines)


def ours_list() -> str:
    return "\n".join(f"* {text}" for text in OURS)


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert preset_table() in page
    assert ours_list() in page


def test_the_entry_of_an_experiment_is_one() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    ((name, values),) = yaml.safe_load(block)["evaluate"].items()
    evaluation = EvaluationConfig.model_validate(values)
    named = PRESETS["nlvr2"]
    assert name == "nlvr2"
    assert named.finetune is not None
    assert evaluation.finetune == named.finetune.model_copy(update={"world_size": 4})
    assert evaluation.splits == ("val", "test")


def test_the_example_runs_as_it_stands(project_root: Path, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    folder = tmp_path / "results" / "nlvr2"
    folder.mkdir(parents=True)
    result = {"task": "classification", "headline": "accuracy", "metrics": {"accuracy": 51.25}, "num_examples": 80}
    (folder / "result.json").write_text(json.dumps(result))
    environment = {**os.environ, "PYTHONPATH": str(project_root)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| nlvr2 | - | accuracy | 51.25 |" in done.stdout
