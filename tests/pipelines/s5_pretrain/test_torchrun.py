"""What torchrun's entry point says to whoever starts it wrongly."""

import pytest

from pipelines.s5_pretrain.torchrun import EXIT_USAGE, main, read_job
from x2vlm.errors import ConfigError


@pytest.fixture(autouse=True)
def started_by_torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "0")


def test_a_missing_job_is_named_with_where_to_find_one(tmp_path):
    with pytest.raises(ConfigError, match=r"job\.json: no such file.*jobs/full_pretrain\.py"):
        read_job([str(tmp_path / "job.json")])


@pytest.mark.parametrize("content", ["", '{"config": {', "[]", '{"config": {}}'])
def test_a_torn_job_is_named_with_its_remedy(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    with pytest.raises(ConfigError, match=r"job\.json: not the job of a run.*start the run again"):
        read_job([str(tmp_path / "job.json")])


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_wrong_use_ends_with_the_command(arguments, caplog):
    assert main(arguments) == EXIT_USAGE
    assert "torchrun --nproc-per-node" in caplog.text


def test_a_process_that_torchrun_did_not_start_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK")
    with pytest.raises(ConfigError, match="not started by torchrun"):
        read_job([str(tmp_path / "job.json")])
