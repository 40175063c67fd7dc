"""Golden cases of captioning: token ids of every search, and both training losses.

A case does not say how long its texts may be, nor all settings of a search. A text that was cut tells the length, and
otherwise one length has to fit all of its texts. What the name of a setting leaves open is looked for among few values.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.golden.differences import Difference, equal, numbers
from tests.golden.folders import case_model
from tests.support.models.golden_cases import Case, read_case
from x2vlm.models.generate import GenerateConfig, generate
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM
from x2vlm.objectives.captioning import smoothed_words, word_logits

RELEASED_MIN_TOKENS, RELEASED_MAX_LENGTH = 5, 20  # defaults of the reference's `generate`
PENALTIES = (1.0, 0.6, 0.5, 0.7, 0.8, 1.2, 1.5, 2.0, 3.0)
OPTIONS = {"num_beams": "num_beams", "min_length": "min_tokens", "length_penalty": "length_penalty"}
FIRST_ALONE = "first_image_alone"
Rows = list[list[int]]


@dataclass(frozen=True)
class Searched:
    """Recorded texts of one setting: of all images, or of the first one alone."""

    name: str
    rows: Rows
    settings: tuple[GenerateConfig, ...]  # those that the record allows; `max_tokens` is still open


@torch.no_grad()
def check_captioning(folder: Path) -> list[Difference]:
    """Every recorded text exactly, and the losses."""
    case = read_case(folder)
    model = case_model(folder, case)
    model.word_head.bias.copy_(case.tensors["w.mlm_bias"])
    found = _losses(model, case)
    searched = list(_recorded(case.info))
    if not searched:
        return [*found, Difference("captions: nothing recorded", math.inf, 0.0)]
    writer, best, fewest = _Writer(model, case), [Difference("no length fits", math.inf, 0.0)], math.inf
    for max_length in _lengths(searched, case, model.config.text.max_positions):
        tried: list[Difference] = []
        for one in searched:
            tried.append(writer.compare(one, max_length))
            if (wrong := sum(difference.is_excess for difference in tried)) >= fewest:
                break
        else:
            best, fewest = tried, wrong
        if not fewest:
            break
    return found + best


class _Writer:
    """Our texts of the case's images, as the reference limits them."""

    def __init__(self, model: X2VLM, case: Case) -> None:
        self._model, self._info = model, case.info
        self._vision = model.encode_image(case.tensors["in.image"])

    def compare(self, one: Searched, max_length: int) -> Difference:
        """Our texts against the recorded ones, with the setting that fits best."""
        recorded = [plain(row, self._info) for row in one.rows]
        # The whole text may have batch size + max_length tokens in the reference.
        limit = len(recorded) + max_length - len(self._info["prompt_ids"])
        vision, found = self._rows(len(recorded)), []
        for config in one.settings:
            ours = self._write(vision, config.model_copy(update={"max_tokens": limit})) if limit > 0 else None
            found.append(equal(f"{one.name} of up to {limit} tokens", ours, recorded))
            if not found[-1].is_excess:
                break
        return min(found, key=lambda difference: difference.value)

    def _rows(self, count: int) -> VisionTokens:
        return self._vision.select(torch.arange(count))

    def _write(self, vision: VisionTokens, config: GenerateConfig) -> Rows | None:
        info = self._info
        try:
            texts = generate(self._model, vision, info["prompt_ids"], info["mask"], info["sep"], config)
        except ValueError:  # longer than the model has positions: not the length we look for
            return None
        return [plain(text.tokens, info) for text in texts]


def plain(row: Sequence[int], info: Mapping[str, Any]) -> list[int]:
    """A text without prompt, end token and padding."""
    tokens = list(row)
    prompt = list(info["prompt_ids"])
    if tokens[: len(prompt)] == prompt:
        tokens = tokens[len(prompt) :]
    if info["sep"] in tokens:
        return tokens[: tokens.index(info["sep"])]
    while tokens and tokens[-1] == info["pad"]:
        tokens.pop()
    return tokens


def _recorded(info: Mapping[str, Any]) -> Iterator[Searched]:
    """Every setting's texts; the first image alone stands beside them or in a record of its own."""
    alone = info.get(FIRST_ALONE, info["captions"].get(FIRST_ALONE))
    for name, value in info["captions"].items():
        if name == FIRST_ALONE:
            continue
        told = _flat(value)
        for key, rows in told.items() if told else [("", value)]:
            if _are_rows(rows):
                yield Searched(f"{name} {key}".strip(), _as_rows(rows), _settings(name, told))
    for name, rows in _flat(alone).items():
        if _are_rows(rows):
            yield Searched(f"{name} {FIRST_ALONE}", _as_rows(rows), _settings(name, _flat(alone)))
    if _are_rows(alone):  # of a setting that is not told
        every = tuple(config for name in info["captions"] for config in _settings(name, {}))
        yield Searched(FIRST_ALONE, _as_rows(alone), every)


def _as_rows(value: Any) -> Rows:
    return [value] if isinstance(value[0], int) else value


def _are_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(item, int) for item in value) or all(
        isinstance(row, list) and all(isinstance(item, int) for item in row) for row in value
    )


def _settings(name: str, told: Mapping[str, Any]) -> tuple[GenerateConfig, ...]:
    """What a setting may be by its name, such as `beam3_penalty`, or by what is recorded beside its texts."""
    beams = int(name.removeprefix("beam").split("_")[0]) if name.startswith("beam") else 1
    min_tokens = (5,) if "min5" in name else (0, RELEASED_MIN_TOKENS)
    penalties = PENALTIES if "penalty" in name else (0.0,)
    known = {ours: told[theirs] for theirs, ours in OPTIONS.items() if isinstance(told.get(theirs), int | float)}
    forbids = told.get("forbid_duplicate_ngrams", "repeats_allowed" not in name)
    no_repeat = int(told.get("ngram_size", 3)) if forbids else 0
    found: dict[GenerateConfig, None] = {}
    for least, penalty in product(min_tokens, penalties):
        values = {"num_beams": beams, "min_tokens": least, "length_penalty": penalty, "no_repeat": no_repeat} | known
        found[GenerateConfig(**values)] = None
    return tuple(found)


def _lengths(searched: Sequence[Searched], case: Case, num_positions: int) -> list[int]:
    """Candidates for the reference's `max_length`, the likeliest first; only one if a text was cut."""
    info, prompt = case.info, len(case.info["prompt_ids"])
    told = [value["max_length"] for value in map(_flat, (info, *info["captions"].values())) if "max_length" in value]
    if told:
        return [int(told[0])]
    ends = any(info["sep"] in row for one in searched for row in one.rows)
    whole = [(len(one.rows), plain(row, info), info["sep"] in row) for one in searched for row in one.rows]
    if ends and (cut := [len(text) + prompt - batch for batch, text, has_ended in whole if not has_ended]):
        return [max(cut)]
    shortest = max(len(text) + 1 + prompt - batch for batch, text, _ in whole)
    widths = [len(one.rows[0]) - len(one.rows) + added for one in searched for added in (0, prompt)]
    every = [*widths, RELEASED_MAX_LENGTH, *range(shortest - 1, num_positions)]
    return [length for length in dict.fromkeys(every) if shortest - 1 <= length < num_positions]


def _flat(value: Any) -> dict[str, Any]:
    """A record without the records inside it, whose entries are its own; nothing for anything else."""
    if not isinstance(value, dict):
        return {}
    inner = {key: item for part in value.values() if isinstance(part, dict) for key, item in part.items()}
    return inner | {key: item for key, item in value.items() if not isinstance(item, dict)}


def _losses(model: X2VLM, case: Case) -> list[Difference]:
    vision = model.encode_image(case.tensors["in.image"])
    found = []
    for name, recorded in case.info["train_losses"].items():
        prefix = f"train.{name}."
        inputs = {key.removeprefix(prefix): value for key, value in case.tensors.items() if key.startswith(prefix)}
        found.append(numbers(f"loss {name}", _loss(model, vision, inputs, case.info["cls"]), recorded))
    return found


def _loss(model: X2VLM, vision: VisionTokens, inputs: Mapping[str, Tensor], start_id: int) -> float:
    texts = inputs["input_ids"], inputs["attention_mask"], inputs["position_ids"]
    logits_BKV = word_logits(model, vision, *texts, inputs["masked_pos"])
    return smoothed_words(logits_BKV, inputs["masked_ids"], inputs["masked_weight"], start_id).item()
