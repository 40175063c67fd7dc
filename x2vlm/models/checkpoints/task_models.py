"""Fine-tuned checkpoints of the reference as models of a task, and back to the same file."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.reference import LoadReport
from x2vlm.models.checkpoints.released import KINDS, LoadedCheckpoint, export_checkpoint
from x2vlm.models.checkpoints.task_heads import head_state, load_head_state
from x2vlm.models.checkpoints.task_parts import DECODER
from x2vlm.models.downstream.config import ClassifierConfig, DecoderConfig, HeadConfig
from x2vlm.models.downstream.task_model import TaskModel

CLASSIFIER = "cls_head."


def task_model_of(loaded: LoadedCheckpoint) -> TaskModel:
    """The model of a task in a checkpoint of any kind, in evaluation mode; its base is the loaded model itself.

    Files of classification and question answering, multilingual or not, have a head; those of retrieval, grounding and
    captioning use the heads of pre-training. ConfigError if entries of the head contradict each other.
    """
    with torch.random.fork_rng(devices=[]):  # start values that are overwritten at once
        model = TaskModel(loaded.model, head_config_of(loaded))
    part = KINDS[loaded.kind].task_part
    if part is not None and model.head is not None:
        state = {name: value for name, value in loaded.task_state.items() if name.startswith(part)}
        load_head_state(model.head, {n: v for n, v in state.items() if not n.endswith("position_ids")}, loaded.kind)
    return model.eval()


def head_config_of(loaded: LoadedCheckpoint) -> HeadConfig | None:
    """The sizes of the head in a checkpoint, None if it has none."""
    state, width = loaded.task_state, loaded.model.config.text.width
    match KINDS[loaded.kind].task_part:
        case None:
            return None
        case "cls_head.":
            num_images = state[f"{CLASSIFIER}0.weight"].shape[1] // width
            return ClassifierConfig(num_labels=len(state[f"{CLASSIFIER}3.bias"]), num_images=num_images)
    embeddings, words = f"{DECODER}bert.embeddings.", f"{DECODER}cls.predictions."
    matrix, table = state.get(f"{words}decoder.weight"), state.get(f"{embeddings}word_embeddings.weight")
    return DecoderConfig(
        num_layers=len({name.split(".")[4] for name in state if name.startswith(f"{DECODER}bert.encoder.layer.")}),
        num_positions=len(state[f"{embeddings}position_embeddings.weight"]),
        num_types=len(state[f"{embeddings}token_type_embeddings.weight"]),
        tie_words=matrix is None or table is None or torch.equal(matrix, table),
    )


def export_task_model(model: TaskModel, kind: str | None = None, absent: Collection[str] = ()) -> dict[str, Tensor]:
    """The state as in a checkpoint file of the reference, values bit for bit.

    `kind`: a key of `x2vlm.models.checkpoints.released.KINDS`; None: what the head says, and for a model without one
    pre-training. `absent`: entries to leave out because the file that it came from did (`LoadedCheckpoint.absent`).
    ConfigError if the kind has another head.
    """
    name = kind or _kind_of(model)
    if name not in KINDS:
        raise ConfigError(f"no kind of checkpoint is called {name!r}; there are {', '.join(KINDS)}")
    part = getattr(model.head, "reference_prefix", None)
    if KINDS[name].task_part != part or (KINDS[name].layout == "separate") == model.config.tie_words:
        raise ConfigError(f"a checkpoint of the kind {name} is not of this model, which gives {_kind_of(model)}")
    state = {} if model.head is None else head_state(model.head)
    return export_checkpoint(LoadedCheckpoint(name, model.base, state, LoadReport(), frozenset(absent)))


def _kind_of(model: TaskModel) -> str:
    part = getattr(model.head, "reference_prefix", None)
    plain = {None: "pretraining", CLASSIFIER: "classification", DECODER: "question_answering"}[part]
    return plain if model.config.tie_words else f"multilingual_{plain}"
