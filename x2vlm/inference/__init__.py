"""A trained model at work: `load` one, then embed, match, rank, ground and caption images, clips and texts (`api`).

Also here: a model's folder and its card (`pretrained`, `card`), finding it on a hub (`hub`), what turns files and texts
into tensors (`visuals`, `processor`), and the page that shows answers (`show`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from x2vlm.inference.api import (
        FolderFeatures,
        Grounded,
        Pretrained,
        Ranked,
        caption,
        embed_folder,
        embed_images,
        embed_texts,
        ground,
        load,
        match,
        rank_images,
        rank_texts,
    )

__all__ = [
    "FolderFeatures",
    "Grounded",
    "Pretrained",
    "Ranked",
    "caption",
    "embed_folder",
    "embed_images",
    "embed_texts",
    "ground",
    "load",
    "match",
    "rank_images",
    "rank_texts",
]


def __getattr__(name: str) -> Any:
    """The names above are those of `api`, which takes seconds to import: a command's `--help` must not wait for it."""
    if name in __all__:
        return getattr(import_module("x2vlm.inference.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
