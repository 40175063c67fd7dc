"""Commands in messages are the ones their reader can run: his experiment, his store, his MLflow."""

from argparse import Namespace

import pytest

from pipelines.hints import complete_hints


@pytest.mark.parametrize(
    ("text", "typed", "told"),
    [
        (
            "run `jobs/run_stage.py sample --only 'read/*'` first",
            {"experiment": "sample", "store": "/big disk/store", "inline": True, "num_cpus": None},
            "run `jobs/run_stage.py sample --store '/big disk/store' --inline --only 'read/*'` first",
        ),
        (
            "python jobs/why.py <experiment> download/coco",
            {"experiment": "my dir/mine.yaml", "store": "s3://b/s", "tracking_uri": "http://h", "inline": True},
            "python jobs/why.py 'my dir/mine.yaml' --store s3://b/s download/coco",
        ),
        (
            "audit    python jobs/audit_lineage.py mine --store here\nnext line",
            {"experiment": "conf/mine.yaml", "store": "here", "tracking_uri": "http://h:5000"},
            "audit    python jobs/audit_lineage.py mine --tracking-uri http://h:5000 --store here\nnext line",
        ),
        ("jobs/run_stage.py other", {"experiment": "sample", "store": "x"}, "jobs/run_stage.py other"),
        ("jobs/why.py <experiment>", {"target": "x", "store": "y"}, "jobs/why.py <experiment>"),
        ("jobs/run_stage.py sample", {"experiment": "sample", "num_cpus": 4}, "jobs/run_stage.py sample --num-cpus 4"),
    ],
)
def test_a_command_repeats_what_was_typed(text: str, typed: dict[str, object], told: str) -> None:
    assert complete_hints(text, Namespace(**typed)) == told
