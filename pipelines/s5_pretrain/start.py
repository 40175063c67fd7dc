"""The initial weights of a run, and the files that the pretrain node reads for them.

A local file is identified by its content, never by its name or folder. A name on the Hugging Face hub is identified as
written, and so must include the commit: `owner/name@<40 hex digits>`, or `name@<40 hex digits>` for the few models that
have no owner.
"""

import re
from collections.abc import Sequence

import pydantic

from pipelines.flow.stage import InputFile, Inputs, Read
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError
from x2vlm.models.files import MODEL_FILES, TEXT_WEIGHTS

HUB_NAME = re.compile(r"^(?P<name>[\w.-]+(/[\w.-]+)?)@(?P<revision>[0-9a-f]{40})$")
LOCAL = "local"
WEIGHT_SLOTS = ("start_vision", "start_text", "start_model")
START_SLOTS = (*WEIGHT_SLOTS, "start_run")  # the last: of a branch, `start_run`


class StartConfig(FrozenConfig):
    """One of: published backbones (`vision`, `text` or both), a `checkpoint`, the weights of an earlier phase (`node`).

    `vision`: a weight file (.pth, .safetensors) or a timm model on the hub; `text`: a folder of a transformers model or
    one on the hub; `checkpoint`: a reference file (.th, .pth) or a folder this project saved; `node`: the name of an
    earlier phase of the experiment. Paths are relative to the project's root. `swap_text`, beside a checkpoint or node:
    a folder or hub name as of `text`, whose encoder replaces the text tower of that model.
    Or a `run` to branch off at `step` (`pipelines.s5_pretrain.start_run`): a pretrain node of the store, a state folder
    or a checkpoint; `keep_optimizer`: with the state of its optimizer.
    """

    vision: str | None = pydantic.Field(default=None, min_length=1)
    text: str | None = pydantic.Field(default=None, min_length=1)
    checkpoint: str | None = pydantic.Field(default=None, min_length=1)
    node: str | None = pydantic.Field(default=None, min_length=1)
    swap_text: str | None = pydantic.Field(default=None, min_length=1)
    run: str | None = pydantic.Field(default=None, min_length=1)
    step: int | None = pydantic.Field(default=None, ge=1)
    keep_optimizer: bool = True

    @pydantic.model_validator(mode="after")
    def _is_one_thing(self) -> "StartConfig":
        backbones = self.vision is not None or self.text is not None
        models = sum(value is not None for value in (self.checkpoint, self.node))
        if self.text is not None and models:
            raise ValueError(
                "give backbones (vision, text or both), or a checkpoint, or a node: exactly one of these; a text "
                "encoder that replaces the one of a checkpoint or node is `swap_text`"
            )
        if self.swap_text is not None and not models:
            raise ValueError(
                "swap_text replaces the text tower of a trained model: give its `checkpoint` or `node` beside it; a "
                "new model starts its text tower from `text`"
            )
        if backbones + models + (self.run is not None) != 1:
            raise ValueError(
                "give backbones (vision, text or both), or a checkpoint, or a node, or a run: exactly one of these"
            )
        if self.run is None and (self.step is not None or not self.keep_optimizer):
            raise ValueError("step and keep_optimizer have no effect without `run`, the training to branch off")
        if self.checkpoint is not None and is_hub_name(self.checkpoint):
            raise ValueError(
                f"checkpoint: {self.checkpoint} is a hub name, and a checkpoint is a file or a folder; hub names are "
                "for vision, text and swap_text"
            )
        return self

    @property
    def text_source(self) -> tuple[str, str] | None:
        """The setting that names a folder or hub name of a text encoder, and its value."""
        if self.text is not None:
            return "text", self.text
        return None if self.swap_text is None else ("swap_text", self.swap_text)

    def recorded(self) -> "StartConfig":
        """The part that is in the node's fingerprint: hub names, and whether there are local files or a phase."""
        kept = {
            name: LOCAL if isinstance(value, str) and not is_hub_name(value) else value
            for name, value in self.model_dump().items()
        }
        return StartConfig.model_validate(kept | {"step": None})  # which step it is the checkpoint's content says


def is_hub_name(value: str) -> bool:
    return HUB_NAME.match(value) is not None


def start_reads(inputs: Inputs) -> list[Read]:
    """The files of the initial weights that are read: of a phase's folder only its model."""
    reads = []
    for slot in WEIGHT_SLOTS:
        for item in inputs.get(slot, ()):
            files: list[InputFile] = [file for part in item.parts for file in part.files]
            if not item.node.startswith("source:"):
                files = [file for file in files if file.path in MODEL_FILES]
                if len(files) != len(MODEL_FILES):
                    raise ConfigError(
                        f"{item.node} holds no model to start from: it must have {', '.join(MODEL_FILES)}"
                    )
            reads += [Read(slot, file) for file in sorted(files, key=lambda file: file.path)]
    return reads


def text_folder_files(names: Sequence[str], folder: str, setting: str = "start.text") -> list[str]:
    """Of the file names in a transformers folder, those its weights are read from; ConfigError if it has none."""
    weights = next((name for name in TEXT_WEIGHTS if name in names), None)
    if "config.json" not in names or weights is None:
        raise ConfigError(
            f"{setting}: {folder} is no folder of a transformers model: it needs config.json and one of "
            f"{', '.join(TEXT_WEIGHTS)}"
        )
    shards = [name for name in names if re.match(r"^model-\d+-of-\d+\.safetensors$", name)]
    return ["config.json", weights, *(sorted(shards) if weights.endswith(".index.json") else [])]
