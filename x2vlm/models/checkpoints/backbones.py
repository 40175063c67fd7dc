"""Reading the weight files of published backbones: every entry under the name that it has in its file.

Nothing is invented: transformers would fill an entry that a file lacks with random numbers and go on. Files are
untrusted: no code in them is executed, and whatever is wrong with one is an error of ours that names it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable
from x2vlm.models.checkpoints.weights import read_tensors, shown_file, without_wrappers
from x2vlm.models.files import CONFIG_FILE, TEXT_WEIGHTS, WEIGHTS_FILE

INDEX = "model.safetensors.index.json"
# Descriptions and indexes are some kilobytes; more is no description.
_MAX_JSON_BYTES = 64 * 1024 * 1024
# What the encoder is called in a transformers model with heads.
_ENCODERS = ("bert.", "roberta.")


@dataclass(frozen=True)
class Backbone:
    """The entries of a backbone by their names in its file.

    `origin` names it in reports, `where` its file in messages. `config`: the description in the folder of a
    transformers model, empty for others. `entries`: names in the file where `state` has others.
    """

    state: dict[str, Tensor]
    origin: str
    where: str
    config: dict[str, Any] = field(default_factory=dict)
    entries: Mapping[str, str] = field(default_factory=dict)


def read_vision_backbone(source: str | Path) -> Backbone:
    """A weight file or a pretrained timm model.

    SourceUnavailable if it is neither, or timm cannot get it; CorruptArtifact as in `read_tensors`.
    """
    path = Path(source)
    if path.is_file():
        return read_vision_file(path, path.name, str(source))
    if path.is_symlink():
        raise SourceUnavailable(f"vision backbone {source}: a link to {path.readlink()}, where no file is")
    if not timm.is_model(str(source)):
        raise SourceUnavailable(f"vision backbone {source}: neither a weight file nor a model name that timm knows")
    try:
        state = timm.create_model(str(source), pretrained=True).state_dict()
    except Exception as error:  # whatever the network, the cache or the weights do
        raise SourceUnavailable(
            f"vision backbone {source}: timm cannot get its weights ({type(error).__name__}: {str(error)[:200]}); "
            "check the connection, or give a weight file"
        ) from error
    return Backbone(dict(state), str(source), str(source))


def read_vision_file(path: Path, name: str, origin: str) -> Backbone:
    """The weight file `path`; what it is called, `name`, tells its format."""
    return Backbone(read_tensors(path, name)[0], origin, shown_file(path, name))


def read_text_backbone(source: str | Path) -> Backbone:
    """The folder of a transformers model on this disk, or a name on the Hugging Face hub.

    SourceUnavailable if there is none or it lacks files, CorruptArtifact if a file is damaged or not what it should be.
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _from_hub(str(source))
    try:
        files = {path.name: path for path in folder.iterdir()}
    except OSError as error:
        raise SourceUnavailable(f"text backbone {source}: not a readable folder ({error})") from error
    return read_text_files(files, str(source))


def read_text_files(files: Mapping[str, Path], origin: str) -> Backbone:
    """The text backbone in `files`, by the names that transformers gives them. Errors as in `read_text_backbone`."""
    weights = next((name for name in TEXT_WEIGHTS if name in files), None)
    if CONFIG_FILE not in files or weights is None:
        raise SourceUnavailable(
            f"text backbone {origin}: no folder of a transformers model: it needs {CONFIG_FILE} and one of "
            f"{', '.join(TEXT_WEIGHTS)}; it has {', '.join(sorted(files)[:10]) or 'nothing'}"
        )
    config = _read_json(files[CONFIG_FILE], CONFIG_FILE)
    where = shown_file(_existing(files[weights], weights), weights)
    state = _read_shards(files) if weights == INDEX else read_tensors(files[weights], weights)[0]
    return Backbone(state, origin, where, config)


def text_names(state: Mapping[str, Tensor], where: str) -> dict[str, str]:
    """Names of the encoder and its heads without the prefixes that files add -> names in the file.

    `module.` (data parallel training), `_orig_mod.` (torch.compile), `bert.` and `roberta.` are such; the old names
    `LayerNorm.gamma` and `.beta` are translated. ConfigError for two entries of one name with different values.
    """
    named: dict[str, str] = {}
    for key in state:
        name = without_wrappers(key)
        for prefix in _ENCODERS:
            name = name.removeprefix(prefix)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        other = named.setdefault(name, key)
        if not _same(state[other], state[key]):
            raise ConfigError(f"{where}: {other} and {key} are both {name}, with different values; remove one of them")
    return named


def missing_text_entries(named: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """Entries that an encoder of the layers in the file, or in its description, has and the file lacks."""
    wanted = [f"embeddings.{part}" for part in _EMBEDDING_PARTS]
    layers = {int(found[1]) for name in named if (found := re.match(r"encoder\.layer\.(\d{1,4})\.", name))}
    described = config.get("num_hidden_layers")
    depth = max(layers, default=-1) + 1
    if isinstance(described, int) and 0 < described <= _MAX_LAYERS:
        depth = max(depth, described)
    wanted += [f"encoder.layer.{layer}.{part}" for layer in range(depth) for part in _LAYER_PARTS]
    return [name for name in wanted if name not in named]


def unexplained_text_entries(named: Mapping[str, str]) -> list[str]:
    """Entries, by their names in the file, that no encoder, word head or known other head has."""
    return sorted(key for name, key in named.items() if not _is_known(name))


def _is_known(name: str) -> bool:
    layer = re.match(r"encoder\.layer\.\d{1,4}\.(.*)", name)
    if layer:
        return layer[1] in _LAYER_PARTS
    return name.removeprefix("embeddings.") in _EMBEDDING_PARTS or bool(TEXT_HEADS.search(name))


# Heads of text backbones, and constants stored beside the weights.
TEXT_HEADS = re.compile(
    r"^(pooler|lm_head|classifier|qa_outputs|cls\.seq_relationship)\."
    r"|^cls\.predictions\.(bias|decoder\.(weight|bias)|transform\.(dense|LayerNorm)\.(weight|bias))$"
    r"|^embeddings\.(position_ids|token_type_ids)$"
)
_MAX_LAYERS = 1000
_EMBEDDING_PARTS = (
    "word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight",
    "LayerNorm.weight", "LayerNorm.bias",
)  # fmt: skip
_LAYER_PARTS = tuple(
    f"{part}.{leaf}"
    for part in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
        "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
    )
    for leaf in ("weight", "bias")
)  # fmt: skip


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.shape == second.shape and bool((first == second).all()))


def _from_hub(name: str) -> Path:
    """A snapshot of the hub's repository `name`, of its safetensors and its description only."""
    import huggingface_hub

    try:
        patterns = [CONFIG_FILE, WEIGHTS_FILE, INDEX, "model-*.safetensors"]
        found = huggingface_hub.snapshot_download(name, allow_patterns=patterns)
    except Exception as error:  # a name that is no name, the network, a cache without it
        raise SourceUnavailable(
            f"text backbone {name}: no such folder here, and the hub does not give it "
            f"({type(error).__name__}: {str(error)[:200]}); check name and connection, or copy the folder by hand"
        ) from error
    return Path(found)


def _read_shards(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """All entries of the files that an index lists; CorruptArtifact unless they are exactly those of the index."""
    index = _read_json(files[INDEX], INDEX).get("weight_map")
    where = shown_file(files[INDEX], INDEX)
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise CorruptArtifact(f"{where}: no `weight_map` of entries to file names; download it again")
    state: dict[str, Tensor] = {}
    for name in sorted(set(index.values())):
        if name not in files:  # also for a name that leads out of the folder
            raise SourceUnavailable(f"{where}: names the file {name[:200]!r}, which is not in the folder")
        state |= read_tensors(_existing(files[name], name), name)[0]
    absent, unlisted = sorted(set(index) - set(state)), sorted(set(state) - set(index))
    if absent or unlisted:
        raise CorruptArtifact(
            f"{where}: its files lack {len(absent)} of its entries {absent[:5]} and hold {len(unlisted)} others "
            f"{unlisted[:5]}; they are not of one model, download all of them again"
        )
    return state


def _read_json(path: Path, name: str) -> dict[str, Any]:
    where = shown_file(path, name)
    try:
        if (size := _existing(path, name).stat().st_size) > _MAX_JSON_BYTES:
            raise CorruptArtifact(f"{where}: {size} bytes, too many for a description; download it again")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptArtifact(f"{where}: not readable as JSON ({str(error)[:200]}); download it again") from error
    if not isinstance(values, dict):
        raise CorruptArtifact(f"{where}: holds a {type(values).__name__}, not an object; download it again")
    return values


def _existing(path: Path, name: str) -> Path:
    if not path.is_file():
        why = f"a link to {path.readlink()}, where no file is" if path.is_symlink() else "no file"
        raise SourceUnavailable(f"{shown_file(path, name)}: {why}; copy it again")
    return path
