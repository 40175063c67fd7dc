"""Golden cases of answers: classifiers on one image, two images or a clip, and the decoder that ranks a list."""

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.differences import Difference, arrays, equal, numbers
from tests.golden.folders import case_model, nearest
from tests.support.models.golden_cases import Case, read_case
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.task_heads import decoder_origins, load_head_state
from x2vlm.models.config import ModelConfig
from x2vlm.models.downstream.answers import (
    AnswerTable,
    answer_losses,
    rank_answers,
    score_answers,
    weighted_answer_loss,
)
from x2vlm.models.downstream.classifier import classification_loss, weighted_classification_loss
from x2vlm.models.downstream.config import ClassifierConfig, DecoderConfig
from x2vlm.models.downstream.decoder import AnswerDecoder
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.fusion import VisionMemory
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM, build_model

ORIGINS, HALF_DEPTH, FRESH = "weight_origin.json", "weight_origin_half_depth.json", "fresh_weights.safetensors"
_DECODER_LAYER = re.compile(r"text_decoder\.(?:bert\.)?encoder\.layer\.(\d+)\.")
_TEXT_LAYER = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(crossattention)?")


@torch.no_grad()
def check_classifier(folder: Path) -> list[Difference]:
    """Logits and loss of a classifier; how many images a row has and whether answers have weights is in the arrays."""
    case = read_case(folder)
    base = case_model(folder, case)
    weights = {name.removeprefix("w."): value for name, value in case.tensors.items() if name.startswith("w.")}
    ids, mask = case.tensors["in.text_ids"], case.tensors["in.text_atts"]
    num_images = len(case.tensors["in.image"]) // len(ids)
    config = ClassifierConfig(num_labels=len(weights["cls_head.3.bias"]), num_images=num_images)
    model = TaskModel(base, config)
    assert model.head is not None
    load_head_state(model.head, weights, str(folder))
    logits = model.head(base, _encode(base, case.tensors["in.image"]), ids, mask)
    targets = case.tensors["in.targets"]
    if "in.weights" in case.tensors:
        row_of = torch.arange(len(ids)).repeat_interleave(torch.tensor(case.info["answers_per_question"]))
        loss = weighted_classification_loss(logits, targets, case.tensors["in.weights"], row_of)
    else:
        loss = classification_loss(logits, targets)
    found = [arrays("logits", logits, case.tensors["out.logits"])] if "out.logits" in case.tensors else []
    return [*found, numbers("loss", loss.item(), case.info["loss"])]


@torch.no_grad()
def check_vqa(folder: Path) -> list[Difference]:
    """The ranking of a list and the training loss with the recorded weights, and where we would start the decoder."""
    case = read_case(folder)
    base = case_model(folder, case)
    recorded = _read_origins(folder / ORIGINS)
    depth = case.info.get("num_dec_layers") or _decoder_depth(recorded)
    model = TaskModel(base, DecoderConfig(num_layers=depth)).eval()
    assert isinstance(model.head, AnswerDecoder)
    load_head_state(model.head, _decoder_state(folder, recorded, model), str(folder))
    ids, mask = case.tensors["in.question_ids"], case.tensors["in.question_atts"]
    states = base.fuse(base.encode_text(ids, mask), mask, _encode(base, case.tensors["in.image"]))
    memory = model.head.question_memory(states, mask)
    found = _ranking(model.head, memory, case) + _training(model.head, memory, case)
    for name in (ORIGINS, HALF_DEPTH):
        found += _origins(name, _read_origins(folder / name), base.config)
    return found


def _encode(base: X2VLM, pixels: Tensor) -> VisionTokens:
    return base.encode_video(pixels) if pixels.ndim == 5 else base.encode_image(pixels)


def _ranking(decoder: AnswerDecoder, memory: VisionMemory, case: Case) -> list[Difference]:
    """Probabilities of first tokens; that the recorded shortlist is one by ours; the probability of each answer on it.

    A shortlist is a set: where equal first tokens lie across its end, any of them may be on it.
    """
    table = AnswerTable(case.tensors["in.answer_ids"], case.tensors["in.answer_atts"])
    ranked = rank_answers(decoder, memory, table, case.info["k_test"])
    found = []
    if "out.first_token_probs" in case.tensors:
        recorded = case.tensors["out.first_token_probs"]
        found.append(arrays("first_token_probs", ranked.first_token_probs_BV, recorded))
    if "out.topk_ids" not in case.tensors:
        return found
    chosen = case.tensors["out.topk_ids"].long()
    first = ranked.first_token_probs_BV[:, table.ids_NL[:, 1]]
    left_out = first.scatter(1, chosen, -math.inf).amax(dim=1)
    excess = (left_out - first.gather(1, chosen).amin(dim=1)).clamp(min=0).max().item()
    found.append(numbers("topk_ids: by how much one left out is likelier", excess, 0.0))
    found.append(equal("topk_ids: how many", chosen.shape[1], ranked.answers_BK.shape[1]))
    found.append(equal("topk_ids: twice", [len(set(row)) for row in chosen.tolist()], [chosen.shape[1]] * len(chosen)))
    if "out.topk_probs" in case.tensors:
        ours = score_answers(decoder, memory, table, chosen).softmax(dim=1)
        found.append(arrays("topk_probs", ours, case.tensors["out.topk_probs"]))
    return found


def _training(decoder: AnswerDecoder, memory: VisionMemory, case: Case) -> list[Difference]:
    if "train.answer_ids" not in case.tensors:
        return []
    counts = torch.tensor(case.info["answers_per_question"])
    asked = memory.select(torch.arange(len(counts)).repeat_interleave(counts))
    losses = answer_losses(decoder, case.tensors["train.answer_ids"], case.tensors["train.answer_atts"], asked)
    loss = weighted_answer_loss(losses, case.tensors["train.weights"], len(counts))
    return [numbers("train_loss", loss.item(), case.info["train_loss"])]


def _decoder_state(folder: Path, recorded: dict[str, str | None], model: TaskModel) -> dict[str, Tensor]:
    """Every parameter of the decoder from where the case says; by our own rule where it does not."""
    pretrained = load_file(nearest(folder, "model.safetensors"))
    fresh = load_file(folder / FRESH) if (folder / FRESH).exists() else {}
    by_name = {_plain(name): value for name, value in pretrained.items()}
    said = {_plain(name): source for name, source in recorded.items()}
    state = {}
    for name, rule in decoder_origins(model).items():
        source = said.get(_plain(name), rule)
        state[name] = fresh[name] if name in fresh or source is None else by_name[_plain(source)]
    return state


def _origins(name: str, recorded: dict[str, str | None], config: ModelConfig) -> list[Difference]:
    """The recorded origin of every parameter against the one by our rule, for a model of as many layers."""
    if not recorded:
        return []
    layers = [found for key in recorded if (found := _TEXT_LAYER.match(key))]
    crossing = {int(found[1]) for found in layers if found[2]}
    if crossing:
        text = config.text.model_copy(update={"num_layers": min(crossing)})
        fusion = config.fusion.model_copy(update={"num_layers": len(crossing)})
        config = config.model_copy(update={"text": text, "fusion": fusion})
    try:
        with torch.device("meta"):
            ours = decoder_origins(TaskModel(build_model(config), DecoderConfig(num_layers=_decoder_depth(recorded))))
    except ConfigError as error:
        return [equal(f"{name}: a rule of ours", str(error), "")]
    expected = {_plain(key): None if source is None else _plain(source) for key, source in ours.items()}
    wrong = {}
    for key, source in recorded.items():
        if key.endswith(("position_ids", "relative_position_index")):
            continue
        plain = _plain(key)
        rule = expected.get(plain) if plain.startswith("text_decoder.") else plain
        if rule != (None if source is None else _plain(source)):
            wrong[key] = (rule, source)
    return [equal(f"{name}: entries from elsewhere", dict(list(wrong.items())[:5]), {})]


def _read_origins(path: Path) -> dict[str, str | None]:
    """The mapping of parameters to pre-trained entries in a file, however deep; empty if there is no file."""
    return _mapping_in(json.loads(path.read_text())) if path.exists() else {}


def _mapping_in(values: Any) -> dict[str, str | None]:
    if not isinstance(values, dict):
        return {}
    if any(_DECODER_LAYER.match(key) for key in values):
        return {key: value for key, value in values.items() if value is None or isinstance(value, str)}
    return next((found for value in values.values() if (found := _mapping_in(value))), {})


def _decoder_depth(recorded: dict[str, str | None]) -> int:
    return len({found[1] for key in recorded if (found := _DECODER_LAYER.match(key))})


def _plain(name: str) -> str:
    """A parameter's name without `bert.`, tied ones under their first name."""
    for part in ("text_encoder.", "text_decoder."):
        if name.startswith(f"{part}bert."):
            name = part + name.removeprefix(f"{part}bert.")
        if name == f"{part}cls.predictions.decoder.weight":
            return f"{part}embeddings.word_embeddings.weight"
        if name == f"{part}cls.predictions.decoder.bias":
            return f"{part}cls.predictions.bias"
    return name
