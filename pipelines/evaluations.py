"""What an experiment says about each downstream task: which data, whether the model is fine-tuned, what is measured.

evaluate:
  retrieval: {task: retrieval, source: coco_heldout}
  vqa:
    task: vqa
    data: {card: downstream/vqav2, data_root: /data, media_root: /data/coco, splits: {test: test_dev}}
    split: test
    finetune: {preset: vqa2_base, world_size: 4}
  multi30k:
    task: retrieval
    data: {card: downstream/multi30k, data_root: /data}
    swap_text: weights/xlm-roberta-base
    finetune: {preset: multi30k}
  xgqa_de: {task: vqa, data: {card: downstream/xgqa, data_root: /data}, split: de, model: gqa}
"""

from collections.abc import Collection, Mapping
from typing import Any

import pydantic

from x2vlm.config import FrozenConfig, did_you_mean, field_problem
from x2vlm.data.readers.downstream import check_roles
from x2vlm.tasks.presets import Preset, preset
from x2vlm.tasks.training.config import FinetuneConfig, TaskChoice


class TaskFiles(FrozenConfig):
    """The files of a task: those that a `card` names, or a user's own, by `reader` and `files`.

    `data_root` holds a folder `<card id>/`; not for cards whose files are shipped. `splits`: our name of a split
    (train, val, test) -> the card's, where they differ. `files`: split -> path, or role -> path where the reader takes
    several files. `options` are the reader's. `media_root`: the folder or bucket with images and clips. At most the
    share `max_missing` of a split may lack them. `parts`: how many parts a split is read in.
    """

    card: str | None = None
    data_root: str | None = None
    media_root: str | None = None
    splits: dict[str, str] = {}
    reader: str | None = None
    files: dict[str, str | dict[str, str]] = {}
    options: dict[str, Any] = {}
    max_missing: float = pydantic.Field(default=0.001, ge=0, lt=1)
    parts: dict[str, int] = {}

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> "TaskFiles":
        if (self.card is None) == (self.reader is None):
            raise ValueError("give either `card`, or `reader` and `files` of your own")
        if self.card is not None and (self.files or self.options):
            raise ValueError("files and options have no effect with `card`, which names its own")
        if self.reader is not None:
            if self.data_root is not None or self.splits:
                raise ValueError("data_root and splits have no effect without `card`")
            if not self.files:
                raise ValueError("files: name a file for each split")
            for split in self.files:
                check_roles(self.reader, self.roles(split))
        return self

    def roles(self, split: str) -> Mapping[str, str]:
        """Role -> path of a split of the user's own files."""
        given = self.files[split]
        return {"rows": given} if isinstance(given, str) else given


class EvaluationConfig(TaskChoice):
    """One evaluation: a task on a held-out `source` of the experiment, or on one or several splits of its own `data`.

    `finetune`: the model learns the task from the split `train` first; with a `preset`, what is written beside it
    replaces single values. `preset` beside `task` gives `options` alone. `model`: the name of another evaluation, whose
    fine-tuned model is measured, or fine-tuned further, instead of the pre-trained one. `swap_text`: a folder with
    XLM-R (config.json, weights, tokenizer.json), which replaces the text encoder before it is fine-tuned. `known_as`:
    what `decontaminate.tests` calls its images, where that is neither the evaluation's name nor its card's.
    """

    batch_size: int = pydantic.Field(default=32, gt=0)
    source: str | None = None
    data: TaskFiles | None = None
    split: str | tuple[str, ...] = "test"
    finetune: FinetuneConfig | None = None
    model: str | None = None
    swap_text: str | None = pydantic.Field(default=None, min_length=1)
    known_as: tuple[str, ...] = ()

    @pydantic.model_validator(mode="before")
    @classmethod
    def _write_presets_out(cls, values: Any) -> Any:
        """The values of a preset stand where nothing else is written."""
        if not isinstance(values, Mapping):
            return values
        found = dict(values)
        if (name := found.pop("preset", None)) is not None:
            found["options"] = dict(_preset(name, "preset", found).options) | dict(found.get("options") or {})
        learned = found.get("finetune")
        if isinstance(learned, Mapping) and "preset" in learned:
            own = dict(learned)
            named = _preset(own.pop("preset"), "finetune.preset", found)
            if named.finetune is None:
                raise ValueError(
                    f"finetune.preset: {named.name} is measured without training; write `preset: {named.name}` beside "
                    "`task` instead"
                )
            found["finetune"] = _merged(named.finetune.model_dump(), own)
            found["options"] = dict(named.options) | dict(found.get("options") or {})
        return found

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> "EvaluationConfig":
        if (self.source is None) == (self.data is None):
            raise ValueError("give either `source`, a held-out source of the experiment, or `data`, files of the task")
        if self.data is None and (self.finetune is not None or self.split != "test"):
            raise ValueError("finetune and split need `data`: a held-out source has one split, and none to learn from")
        if self.finetune is None and self.swap_text is not None:
            raise ValueError("swap_text needs `finetune`: the new encoder has not learned to go with this model yet")
        if self.data is None and self.known_as:
            raise ValueError("known_as needs `data`: images of a held-out source are known by the source's name")
        if len(set(self.splits)) != len(self.splits) or not self.splits:
            raise ValueError("split: name one split, or several different ones")
        if self.data is not None and self.data.reader is not None:
            for split in self.needed_splits:
                if split not in self.data.files:
                    raise ValueError(f"data.files: split {split} is needed; {did_you_mean(split, self.data.files)}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are measured."""
        return (self.split,) if isinstance(self.split, str) else self.split

    @property
    def needed_splits(self) -> tuple[str, ...]:
        """The splits that are read: to learn from, to select on, to measure."""
        learned = () if self.finetune is None else ("train", *self.finetune.selection_splits)
        return tuple(dict.fromkeys((*learned, *self.splits)))


def in_order(evaluations: Mapping[str, EvaluationConfig]) -> list[str]:
    """Names such that a model comes before those that start from it; ValueError for a `model` that nothing makes."""
    learned = [name for name, evaluation in evaluations.items() if evaluation.finetune is not None]
    found: list[str] = []
    waiting = list(evaluations)
    while waiting:
        ready = [name for name in waiting if evaluations[name].model in (None, *found)]
        if not ready:
            name = waiting[0]
            model = str(evaluations[name].model)
            if model in learned:
                raise ValueError(f"evaluate.{name}.model: {', '.join(waiting)} start from each other")
            raise ValueError(
                f"evaluate.{name}.model: {model!r} is no other evaluation that has `finetune`; "
                f"{did_you_mean(model, [one for one in learned if one != name])}"
            )
        if idle := [name for name in ready if evaluations[name].model not in (None, *learned)]:
            model = str(evaluations[idle[0]].model)
            raise ValueError(
                f"evaluate.{idle[0]}.model: {model!r} is not fine-tuned itself; {did_you_mean(model, learned)}"
            )
        found += ready
        waiting = [name for name in waiting if name not in ready]
    return found


def check_known(evaluations: Mapping[str, EvaluationConfig], searched: Collection[str]) -> None:
    """ValueError for a `known_as` that no search for test images is called by."""
    for name, evaluation in evaluations.items():
        if unknown := [one for one in evaluation.known_as if one not in searched]:
            hint = did_you_mean(unknown[0], searched) if searched else "the experiment searches for none"
            raise ValueError(f"evaluate.{name}.known_as: no `decontaminate.tests` is called {unknown[0]!r}; {hint}")


def _preset(name: Any, where: str, values: Mapping[str, Any]) -> Preset:
    try:
        found = preset(str(name))
    except ValueError as error:
        raise pydantic.ValidationError.from_exception_data(
            "EvaluationConfig", [field_problem(tuple(where.split(".")), str(error))]
        ) from None
    if found.task != values.get("task"):
        raise ValueError(f"{where}: {found.name} is a preset of task {found.task}, not of {values.get('task')}")
    return found


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `over` in their place, also inside mappings."""
    merged = dict(values)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged
