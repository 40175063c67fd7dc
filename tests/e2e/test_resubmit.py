"""A store outlives the job that filled it: submit, edit, submit again, and nothing runs twice."""

import json
import subprocess

import pytest

from tests.e2e.conftest import Cluster, SampleRun


def test_after_an_edit_the_same_submission_reuses_everything(cluster: Cluster, sample_run: SampleRun) -> None:
    store = sample_run.store
    assert store == cluster.checkout.path / "runs" / "store"
    assert (store / "parts").is_dir()
    said = sample_run.submission.stdout
    assert f"event=store uri={store}" in said
    assert said.index("event=store") < said.index("event=part_done"), "where the store is comes before anything runs"
    assert "No experiment was named: this is `sample`" in said
    for name in ("jobs/full_pretrain.py", "pipelines/s3_score/stage.py"):
        path = cluster.checkout.path / name
        path.write_text(path.read_text(encoding="utf-8") + "# a comment: another package for Ray\n", encoding="utf-8")
    again = cluster.submit("jobs/full_pretrain.py", "--json")
    assert again.returncode == 0, f"{again.stdout[-8000:]}\n{again.stderr[-4000:]}"
    assert f"event=store uri={store}" in again.stdout
    (line,) = [line for line in again.stdout.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert told["num_parts_run"] == 0
    assert {node["action"] for node in told["nodes"]} == {"REUSE"}


@pytest.mark.parametrize("words", [("job", "list"), ("status",)], ids=" ".join)
def test_the_cluster_says_what_it_runs(cluster: Cluster, sample_run: SampleRun, words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [str(cluster.checkout.bin / "ray"), *words],
        env={**cluster.environment, "RAY_ADDRESS": cluster.address if words == ("status",) else cluster.dashboard},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert ("jobs/full_pretrain.py" if words == ("job", "list") else "CPU") in done.stdout
