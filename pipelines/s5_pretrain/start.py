"""The initial weights of a run, and the files that the pretrain node reads for them.

A local file is identified by its content, never by its name or folder. A name on the Hugging Face hub is identified as
written, and so must include the commit: `owner/name@<40 hex digits>`.
"""

import re
from collections.abc import Sequence

import pydantic

from pipelines.flow.stage import InputFile, Inputs, Read
from x2vlm.config import FrozenConfig
from x2vlm.errors import ConfigError
from x2vlm.models.files import MODEL_FILES

HUB_NAME = re.compile(r"^(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})$")
# What transformers takes of a folder, best first; a sharded one is led by its index.
TEXT_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
LOCAL = "local"
WEIGHT_SLOTS = ("start_vision", "start_text", "start_model")
START_SLOTS = (*WEIGHT_SLOTS, "start_run")  # the last: of a branch, `start_run`


class StartConfig(FrozenConfig):
    """One of: published backbones (`vision`, `text` or both), a `checkpoint`, the weights of an earlier phase (`node`).

    `vision`: a weight file (.pth, .safetensors) or a timm model on the hub; `text`: a folder of a transformers model or
    one on the hub; `checkpoint`: a reference file (.th, .pth) or a folder this project saved; `node`: the name of an
    earlier phase of the experiment. Paths are relative to the project's root.
    Or a `run` to branch off at `step` (`pipelines.s5_pretrain.start_run`): a pretrain node of the store, a state folder
    or a checkpoint; `keep_optimizer`: with the state of its optimizer.
    """

    vision: str | None = None
    text: str | None = None
    checkpoint: str | None = None
    node: str | None = None
    run: str | None = None
    step: int | None = pydantic.Field(default=None, ge=1)
    keep_optimizer: bool = True

    @pydantic.model_validator(mode="after")
    def _is_one_thing(self) -> "StartConfig":
        backbones = self.vision is not None or self.text is not None
        others = [self.checkpoint, self.node, self.run]
        if backbones + sum(value is not None for value in others) != 1:
            raise ValueError(
                "give backbones (vision, text or both), or a checkpoint, or a node, or a run: exactly one of these"
            )
        if self.run is None and (self.step is not None or not self.keep_optimizer):
            raise ValueError("step and keep_optimizer have no effect without `run`, the training to branch off")
        return self

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


def text_folder_files(names: Sequence[str], folder: str) -> list[str]:
    """Of the file names in a transformers folder, those its weights are read from; ConfigError if it has none."""
    weights = next((name for name in TEXT_WEIGHTS if name in names), None)
    if "config.json" not in names or weights is None:
        raise ConfigError(
            f"start.text: {folder} is no folder of a transformers model: it needs config.json and one of "
            f"{', '.join(TEXT_WEIGHTS)}"
        )
    shards = [name for name in names if re.match(r"^model-\d+-of-\d+\.safetensors$", name)]
    return ["config.json", weights, *(sorted(shards) if weights.endswith(".index.json") else [])]
