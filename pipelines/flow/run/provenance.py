"""Under what circumstances a run happens: code, libraries, command line, job, machine. Captured once per launch."""

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.flow.safe_text import MASK, mask_url
from pipelines.project import PROJECT_ROOT

LIBRARIES = (
    *("av", "img2dataset", "mlflow", "numpy", "open_clip_torch", "pillow", "pyarrow", "pydantic", "ray"),
    *("safetensors", "timm", "tokenizers", "torch", "torchvision", "transformers", "webdataset"),
)
IMAGE_VARIABLES = ("X2VLM_IMAGE", "CONTAINER_IMAGE")
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a submitted job
_SECRET_WORD = re.compile(r"token|secret|passw|credential|api[-_]?key|access[-_]?key", re.IGNORECASE)


def capture(argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What goes into every manifest and every parent run of a launch; secrets are masked."""
    environment = os.environ if environment is None else environment
    sha, dirty = git_state(PROJECT_ROOT)
    return {
        "git_sha": sha or environment.get("X2VLM_GIT_SHA"),
        "git_dirty": dirty,
        "argv": mask_secrets(sys.argv if argv is None else argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": library_versions(),
        "image": next((environment[name] for name in IMAGE_VARIABLES if environment.get(name)), None),
        "ray_job_id": environment.get("RAY_JOB_ID"),
        **ray_submission(environment),
        "launched_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def ray_submission(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Submission id and package (hash of the working directory) of the Ray job we run in; None outside of one."""
    try:
        job = json.loads(environment.get(RAY_JOB_VARIABLE) or "{}")
        metadata, runtime_env = job.get("metadata") or {}, job.get("runtime_env") or {}
    except (ValueError, AttributeError):
        metadata, runtime_env = {}, {}
    return {"submission_id": metadata.get("job_submission_id"), "ray_package": runtime_env.get("working_dir")}


def mask_secrets(argv: Sequence[str]) -> list[str]:
    """`argv` without the values of options that name a secret, and without user names and passwords in URLs."""
    masked, mask_next = [], False
    for word in argv:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("-")
        if mask_next and not is_option:
            masked.append(MASK)
        elif equals and _SECRET_WORD.search(name) and "://" not in name:
            masked.append(f"{name}={MASK}")
        else:
            masked.append(mask_url(word))
        mask_next = is_option and not equals and bool(_SECRET_WORD.search(name))
    return masked


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """Commit of the working tree at `root` and whether it has changes; (None, None) where there is no git."""
    sha = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return (sha, None if status is None else bool(status)) if sha else (None, None)


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that can change what comes out. Reads metadata, imports nothing."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
