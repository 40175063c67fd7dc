"""Which epoch of a fine-tuning is kept: each is measured on the selection splits, by all processes together.

What is measured stays in the state folder, a file per epoch, so a selection that was killed goes on.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.s5_pretrain.fencing import Fence
from pipelines.s5_pretrain.finetune.config import FinetuneNodeConfig
from x2vlm.errors import ConfigError
from x2vlm.inference.processor import Processor
from x2vlm.models.checkpoints.weights import load_own_tensors
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.stores.calls import StoreFiles
from x2vlm.tasks.catalog import task_spec
from x2vlm.tasks.task import TaskContext, TaskResult
from x2vlm.tasks.training.splits import PackedMedia, Split
from x2vlm.train.checkpoint import CheckpointStore
from x2vlm.train.ranks import Ranks, copy_from_first, gather_json

log = logging.getLogger(__name__)

SELECTION_FILE = "selection.json"
_MEASURED = "selection"  # folder of the state
_NUM_REHEARSED = 16
LABELS = {
    "validation": "best epoch on the validation split",
    "reference": "best epoch on the split that is reported, as the reference's scripts do",
    "last": "last epoch",
}


@dataclass(frozen=True)
class Selection:
    """One selection on this process."""

    config: FinetuneNodeConfig
    splits: Mapping[str, Split]
    media: PackedMedia
    processor: Processor
    job: Mapping[str, Any]
    ranks: Ranks
    fence: Fence

    def run(self, model: TaskModel, checkpoints: CheckpointStore, steps_per_epoch: int) -> None:
        """Measure the epochs that were not measured yet, and write `selection.json` to the state folder."""
        settings, state = self.config.finetune, StoreFiles(self.job["state_uri"])
        asked = range(settings.select_from_epoch, settings.epochs) if settings.selection_splits else range(0)
        done = [] if not self.ranks.is_first else [e for e in asked if state.read(_name(e)) is not None]
        known = set(gather_json(done, self.ranks))
        for epoch in asked:
            if epoch in known:
                continue
            step = (epoch + 1) * steps_per_epoch
            if self.ranks.is_first:
                load_own_tensors(model, checkpoints.load(step).model, f"checkpoint of step {step}")
            copy_from_first(model, self.ranks)
            measured = {split: self._measure(model, split) for split in settings.selection_splits}
            score = sum(values["headline"] for values in measured.values()) / len(measured)
            if self.ranks.is_first:
                self.fence.check()
                told = {"epoch": epoch, "step": step, "score": score, "splits": measured}
                state.write(_name(epoch), json.dumps(told, indent=1, sort_keys=True).encode())
                log.info("event=epoch_measured epoch=%d score=%.4f", epoch, score)
        if self.ranks.is_first:
            self.fence.check()
            measured_epochs = [json.loads(state.read(_name(epoch)) or b"null") for epoch in asked]
            state.write(SELECTION_FILE, json.dumps(chosen(self.config, measured_epochs), indent=1).encode())

    def rehearse(self, model: TaskModel) -> None:
        """Measure a few examples before anything is trained: what would stop the selection after days stops it now."""
        for split in self.config.finetune.selection_splits:
            examples = self.splits[split].examples
            few = [examples[len(examples) * number // _NUM_REHEARSED] for number in range(_NUM_REHEARSED)]
            own = dataclasses.replace(self.splits[split], examples=tuple({e.example_id: e for e in few}.values()))
            self._require(self._result(model, own), split)

    def _measure(self, model: TaskModel, split: str) -> dict[str, Any]:
        result = self._result(model, self.splits[split])
        headline = self._require(result, split)
        if not math.isfinite(headline):
            raise ConfigError(f"{self.config.task}: split {split} gives {headline}, by which no epoch can be chosen")
        return {"headline": headline, "metrics": dict(result.metrics), "data_digest": result.data_digest}

    def _require(self, result: TaskResult, split: str) -> float:
        name = task_spec(self.config.task).headline
        if name not in result.metrics:
            raise ConfigError(
                f"{self.config.task}: split {split} gives no {name}, so no epoch can be chosen by it; has it answers? "
                "Set `selection: last`, or give a split that has"
            )
        return float(result.metrics[name])

    def _result(self, model: TaskModel, own: Split) -> TaskResult:
        config = self.config
        context = TaskContext(
            examples=own.examples,
            load=lambda sha256: self.media.visual(sha256, self.processor),
            processor=self.processor,
            labels=tuple(self.job["start"]["labels"]) or own.labels,
            label_tags=own.label_tags,
            device=self.ranks.device,
            ranks=self.ranks,
        )
        return task_spec(config.task).load().evaluate(model, config.options, context)


def chosen(config: FinetuneNodeConfig, measured: list[dict[str, Any]]) -> dict[str, Any]:
    """What `selection.json` says: the epoch that is kept (of equal ones the first), and all that was measured."""
    settings = config.finetune
    best = max(measured, key=lambda item: (item["score"], -item["epoch"])) if measured else None
    return {
        "selection": settings.selection,
        "label": LABELS[settings.selection],
        "headline": task_spec(config.task).headline,
        "splits": list(settings.selection_splits),
        "epoch": settings.epochs - 1 if best is None else best["epoch"],
        "epochs": measured,
    }


def _name(epoch: int) -> str:
    return f"{_MEASURED}/epoch-{epoch:05d}.json"
