"""The README.md of a saved model: what it is, what it was made of, and what nobody should expect of it.

It says what it was given and what the config shows. What nobody gave is said to be unknown, never guessed.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from x2vlm.config import FrozenConfig
from x2vlm.models.config import ModelConfig

UNKNOWN = "Not recorded."
_MARKUP = re.compile(r"([\\`*_\[\]<>|#!])")


class CardFacts(FrozenConfig):
    """What only the maker of a model knows; None: not known, empty: known to be nothing.

    `lineage_root` is the root hash of the training shards, `contamination` maps each test set to what the search for
    its images in the training data found, `licence` is of the weights (an SPDX id).
    """

    name: str
    lineage_root: str | None = None
    training: Mapping[str, str | int | float] | None = None
    contamination: Mapping[str, Any] | None = None
    licence: str | None = None
    limits: tuple[str, ...] | None = None


def render_card(config: ModelConfig, num_parameters: int, facts: CardFacts) -> str:
    """The card as Markdown with the hub's YAML header; equal facts give equal text."""
    header: dict[str, Any] = {"library_name": "x2vlm", "tags": ["x2vlm", "vision-language"]}
    if facts.licence:
        header["license"] = facts.licence.lower()
    sections = [
        f"# {_plain(facts.name)}",
        "An X2-VLM model (arXiv 2211.12402): one network that embeds pictures, clips and texts, tells whether a text "
        "describes a picture, finds what a phrase names, and writes captions.",
        _sizes(config, num_parameters),
        f"## Training data\n\n{_lineage(facts)}",
        f"## Test pictures in the training data\n\n{_contamination(facts.contamination)}",
        f"## Licence\n\n{_plain(facts.licence) if facts.licence else UNKNOWN}",
        f"## Limits\n\n{_limits(facts.limits)}",
        '## Use\n\n```python\nfrom x2vlm import inference\n\nmodel = inference.load("path/to/this/folder")\n'
        'print(inference.caption(model, ["photo.jpg"]))\nprint(inference.ground(model, "photo.jpg", ["a dog"]))\n```',
    ]
    return f"---\n{yaml.safe_dump(header, sort_keys=True)}---\n\n" + "\n\n".join(sections) + "\n"


def _sizes(config: ModelConfig, num_parameters: int) -> str:
    vision, text = config.vision, config.text
    frames = "any number of frames" if config.num_frames is None else f"up to {config.num_frames} frames, in order"
    if vision.temporal == "attention":
        frames += ", with attention over time"
    rows = {
        "parameters": f"{num_parameters:,}",
        "image tower": f"{vision.backbone}, {vision.depth} blocks of width {vision.width}, {vision.image_res} pixels",
        "clips": frames,
        "text tower": f"{text.architecture}, {text.num_layers} layers of width {text.width}",
        "vocabulary": f"{text.vocab_size:,} entries",
        "fusion": f"{config.fusion.num_layers} layers",
        "embeddings": f"{config.embed_dim} numbers",
    }
    return "## Model\n\n" + _table(rows)


def _lineage(facts: CardFacts) -> str:
    root = f"Root of the training shards: `{_code(facts.lineage_root)}`" if facts.lineage_root else UNKNOWN
    return root if not facts.training else f"{root}\n\n{_table(facts.training)}"


def _contamination(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return UNKNOWN
    if not found:
        return "No test set was searched for."
    return _table({name: ", ".join(_pairs(value)) for name, value in found.items()})


def _pairs(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key} {item}" for key, item in sorted(value.items())]
    return ["not searched for" if value is None else str(value)]


def _limits(limits: tuple[str, ...] | None) -> str:
    if limits is None:
        return UNKNOWN
    return "\n".join(f"- {_plain(limit)}" for limit in limits) or "None were named."


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {_plain(str(k))} | {_plain(str(v))} |" for k, v in rows.items())])


def _plain(text: str) -> str:
    """`text` on one line, its markup shown instead of obeyed."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "")
