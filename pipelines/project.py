"""Where this project lies on this machine, and where the relative paths of an experiment start.

Usually both are one folder. A job that was submitted with `ray job submit --working-dir .` runs from a copy that Ray
unpacked and will delete: what must outlive the job then needs another place, which `lasting_root` names.
"""

import functools
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

PROJECT_ROOT = Path(__file__).resolve().parent.parent  # the folder with `pipelines`, `x2vlm`, `jobs`, `datasets`

HOME_VARIABLE = "X2VLM_HOME"
STORE_VARIABLE = "X2VLM_STORE"
_PACKAGES = "runtime_resources"  # of a Ray session, where it unpacks the code of jobs


def is_packaged(root: Path = PROJECT_ROOT) -> bool:
    """True if `root` lies in a package of Ray's: it goes when the job has ended and others need the space."""
    return any(
        folder == _PACKAGES and below.endswith("_files")
        for folder, below in zip(root.parts, root.parts[1:], strict=False)
    )


def lasting_root(root: Path = PROJECT_ROOT, environment: Mapping[str, str] | None = None) -> Path | None:
    """The folder where relative paths start that must outlive a job: stores, data, weights. None if there is none.

    X2VLM_HOME where it is set, else the project's own folder; in a submitted job the checkout from which the
    environment was installed, if this machine has it.
    """
    environment = os.environ if environment is None else environment
    if home := environment.get(HOME_VARIABLE):
        return Path(home).expanduser().absolute()
    return installed_checkout() if is_packaged(root) else root


def project_path(path: str | Path) -> Path:
    """`path` as an absolute path. A relative one starts at the project's root, or at `lasting_root` if it is not there.

    So shipped files are those that travelled with the job, and the user's files are found where they lie.
    """
    here = (PROJECT_ROOT / path).resolve()
    lasting = lasting_root()
    if lasting is None or lasting == PROJECT_ROOT or here.exists():
        return here
    return (lasting / path).resolve()


@functools.cache
def installed_checkout() -> Path | None:
    """The folder of this project's editable installation; None if there is none, or not here, or not to be written."""
    for installed in importlib.metadata.distributions(name="x2vlm"):
        origin = json.loads(installed.read_text("direct_url.json") or "{}")
        url = urlsplit(str(origin.get("url", "")))
        if url.scheme != "file" or not origin.get("dir_info", {}).get("editable"):
            continue
        folder = Path(unquote(url.path)).resolve()
        if (folder / "pipelines" / "project.py").is_file() and os.access(folder, os.W_OK) and not is_packaged(folder):
            return folder
    return None
