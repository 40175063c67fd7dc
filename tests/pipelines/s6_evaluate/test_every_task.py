"""Every downstream task from files in its official format to a table: read, learned for a few steps, measured.

The files are a small world's, the model is a random toy; nothing is said about how good it gets.
"""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import WorldConfig
from pipelines.evaluation_nodes import task_nodes
from pipelines.evaluations import EvaluationConfig
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Graph, Runtime, SourceFile
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.store import Store
from pipelines.report.comparison import comparison_table
from pipelines.report.comparison_formats import as_text
from tests.support.training.corpus import MODEL
from x2vlm.data.task_cards import load_task_card, part_paths, read_split
from x2vlm.data.text.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.inference.processor import processor_for
from x2vlm.models.x2vlm import build_model
from x2vlm.tasks.catalog import task_spec
from x2vlm.train.config import TrainRuntime

FINETUNE = {"epochs": 1, "batch_size": 16, "precision": "float32", "optimizer": {"lr": 1e-3}}
# What a card's task needs to know beside its files, and how its metric may be asked.
OPTIONS: dict[str, dict[str, Any]] = {
    "coco_captioning": {"max_tokens": 8, "num_beams": 2},
    "marvl": {"num_images": 2},
    "nlvr2": {"num_images": 2},
    "coco_retrieval": {"shortlist": 8},
    "vqav2": {"shortlist": 4},
    "xgqa": {"shortlist": 4},
}
MEASURED_ONLY = ("ovad", "winoground")
CARDS = (
    *("coco_captioning", "coco_retrieval", "marvl", "msrvtt_qa", "msrvtt_retrieval", "multi30k", "nlvr2", "ovad"),
    *("refcoco_plus", "refcoco_plus_weak", "vqav2", "winoground", "wit", "xflickrco", "xgqa", "xvnli"),
)


@pytest.fixture(scope="module")
def cards(tmp_path_factory) -> Path:
    """The folder of the cards of a world of 160 scenes."""
    out = tmp_path_factory.mktemp("tasks") / "world"
    build_world(WorldConfig(seed=11, scenes=160, image_size=96, sources=("coco", "webvid")), out)
    return out / "cards" / "tasks"


@pytest.fixture(scope="module")
def model(cards, tmp_path_factory) -> tuple[SourceFile, ...]:
    """A random toy model that knows the words of all tasks."""
    words: dict[str, None] = {}
    for path in sorted(cards.glob("*.yaml")):
        card = load_task_card(path)
        for split in card.splits:
            files = [{role: Path(name) for role, name in part.items()} for part in part_paths(card, split, Path("/"))]
            for example in read_split(card, split, files).examples:
                for text in (*example.texts, *example.answers):
                    words |= dict.fromkeys(text.lower().translate(str.maketrans(",.?", "   ")).split())
    tokenizer = WordPieceTokenizer([*SPECIAL_TOKENS, *words])
    text = MODEL.text.model_copy(update={"vocab_size": len(tokenizer), "max_positions": 64})
    vision = MODEL.vision.model_copy(update={"image_res": 32})
    torch.manual_seed(0)
    built = build_model(MODEL.model_copy(update={"text": text, "vision": vision, "num_frames": 5}))
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(built, folder, processor=processor_for(built.config, tokenizer, max_tokens=24))
    names = [path.name for path in sorted(folder.iterdir()) if path.name != "README.md"]
    return tuple(SourceFile(str(folder / name), "model") for name in names)


@pytest.mark.parametrize("name", CARDS)
def test_a_task_runs_from_official_files_to_a_table(cards, model, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", "")  # without Java, which takes 20 s to start and has tests of its own
    card = load_task_card(cards / f"{name}.yaml")
    measured = "testA" if "testA" in card.splits else "test"
    values = {
        "task": card.task,
        "data": {"card": str(cards / name)},
        "split": measured,
        "options": OPTIONS.get(name, {}),
    }
    if name not in MEASURED_ONLY:
        values["finetune"] = FINETUNE
    evaluation = EvaluationConfig.model_validate(values)
    nodes = task_nodes(name, evaluation, model, (), TrainRuntime(), lambda stage: Runtime())
    graph, store = Graph(nodes), Store(str(tmp_path / "store"))
    found = run(graph, plan(graph, store, name), store, InlineRunner(), lambda event: None, {}).nodes
    if name not in MEASURED_ONLY:
        (trained,) = found[f"finetune/{name}"].manifest.parts
        assert math.isfinite(trained.record.summary["metrics"]["loss"])
    (part,) = found[f"evaluate/{name}"].manifest.parts
    folder = Path(store.uri_of(part_folder("evaluate", part.record.fingerprint)).removeprefix("file://"))
    result = json.loads((folder / "result.json").read_text())
    assert result["num_examples"] > 0
    headline = result["metrics"][task_spec(card.task).headline]
    assert 0 <= headline <= (1000 if card.task == "captioning" else 100)  # CIDEr goes up to 10
    assert (result["selection"] or {}).get("splits") == (None if name in MEASURED_ONLY else ["val"])
    assert pq.read_table(folder / "predictions.parquet").column_names[0] == "example_id"
    assert (folder / "examples.html").stat().st_size < 3e6
    assert name in as_text(comparison_table({name: result}))
