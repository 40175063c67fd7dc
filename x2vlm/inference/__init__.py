"""A trained model at work: `load` one, then embed, match, rank, ground and caption images, clips and texts (`api`).

Also here: a model's folder and its card (`pretrained`, `card`), finding it on a hub (`hub`), what turns files and texts
into tensors (`visuals`, `processor`), the page that shows answers (`show`), and programs for other runtimes (`export`).

Importing this package makes transformers' `AutoConfig`, `AutoModel` and `AutoProcessor` know its folders (`auto`).
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
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
    from x2vlm.inference.hub import push_to_hub

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
    "push_to_hub",
    "rank_images",
    "rank_texts",
]


def __getattr__(name: str) -> Any:
    """The names above are those of `api`, which takes seconds to import: a command's `--help` must not wait for it."""
    if name == "push_to_hub":
        return import_module("x2vlm.inference.hub").push_to_hub
    if name in __all__:
        return getattr(import_module("x2vlm.inference.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


class _Registration(MetaPathFinder):
    """Registers our config as soon as transformers' own are imported: importing them here would take seconds."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _AUTO_CONFIG or (spec := PathFinder.find_spec(fullname, path, target)) is None:
            return None
        loader = spec.loader
        assert loader is not None
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register(module)

        loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register(module: ModuleType) -> None:
    import_module("x2vlm.inference.auto_config").register_config(module.AutoConfig)


if _AUTO_CONFIG in sys.modules:
    _register(sys.modules[_AUTO_CONFIG])
else:
    sys.meta_path.insert(0, _Registration())
