"""What is recorded of a launch, and what must never be."""

import json
import subprocess
from pathlib import Path

import pytest

from pipelines.flow.fingerprint import canonical_json
from pipelines.flow.run.provenance import capture, git_state, mask_secrets, ray_submission
from pipelines.flow.safe_text import mask_url

CANARY = "hunter2"


@pytest.mark.parametrize(
    "argv",
    [
        ["--hf-token", CANARY],
        [f"--hf-token={CANARY}"],
        ["--password", CANARY, "--steps", "5"],
        [f"--aws_secret_access_key={CANARY}"],
        ["--api-key", CANARY],
        [f"API_KEY={CANARY}"],
        ["--tracking-uri", f"https://me:{CANARY}@mlflow.example/x"],
        [f"--tracking-uri=https://me:{CANARY}@mlflow.example/x"],
        [f"https://{CANARY}@example.org/"],
        [f"https://example.org/a?X-Amz-Signature={CANARY}&x=1"],
        [f"--store=s3://key:{CANARY}@bucket/x"],
    ],
)
def test_secrets_are_masked(argv: list[str]):
    masked = mask_secrets(["job.py", *argv])
    assert CANARY not in " ".join(masked)
    assert len(masked) == len(argv) + 1


@pytest.mark.parametrize(
    "argv",
    [
        ["base_4m", "--only", "score/*", "--steps=5"],
        ["--max-tokens-per-step", "--json"],
        ["--mail", "me@example.org"],
        ["s3://bucket/a@b"],
    ],
)
def test_what_is_no_secret_stays(argv: list[str]):
    assert mask_secrets(argv) == argv


def test_urls_keep_everything_but_the_secret():
    assert mask_url("https://me:pw@host:80/a?b=1&token=t&c=2") == "https://***@host:80/a?b=1&token=***&c=2"


def test_a_launch_is_described(project_root: Path):
    job = {"metadata": {"job_submission_id": "sub"}, "runtime_env": {"working_dir": "gcs://_ray_pkg_12.zip"}}
    environment = {
        "RAY_JOB_ID": "01",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        "CONTAINER_IMAGE": "image@sha256:1",
    }
    found = capture(["job.py", "--token", CANARY], environment)
    assert (found["ray_job_id"], found["image"]) == ("01", "image@sha256:1")
    assert (found["submission_id"], found["ray_package"]) == ("sub", "gcs://_ray_pkg_12.zip")
    assert found["argv"] == ["job.py", "--token", "***"]
    assert {"ray", "torch", "pydantic"} <= found["libraries"].keys()
    canonical_json(found)  # it goes into manifests


@pytest.mark.parametrize("value", ["", "{", "[]", "{}"])
def test_outside_of_a_ray_job_there_is_no_submission(value: str):
    assert ray_submission({"RAY_JOB_CONFIG_JSON_ENV_VAR": value}) == {"submission_id": None, "ray_package": None}


def test_git_state_is_read(tmp_path: Path):
    assert git_state(tmp_path / "nowhere") == (None, None)

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    sha = git("rev-parse", "HEAD")
    assert git_state(tmp_path) == (sha, False)
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == (sha, True)


def test_without_git_the_environment_may_name_the_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = capture([], {"X2VLM_GIT_SHA": "abc"})
    assert (found["git_sha"], found["git_dirty"]) == ("abc", None)
