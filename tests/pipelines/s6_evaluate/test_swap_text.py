"""A trained model with the text encoder of XLM-R instead of its own: fine-tuned and measured in another language."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

from pipelines.evaluation_nodes import task_nodes
from pipelines.evaluations import EvaluationConfig
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Graph, Runtime, SourceFile
from pipelines.flow.store.layout import part_folder
from pipelines.flow.store.store import Store
from tests.support.models.folders import xlmr_tokenizer
from tests.support.training.finetuning import toy_image, toy_model_folder
from x2vlm.errors import ConfigError, StageFailed
from x2vlm.inference.processor import load_processor
from x2vlm.train.config import TrainRuntime


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return toy_model_folder(tmp_path_factory.mktemp("model"))


def xlmr_folder(folder: Path, **changes) -> Path:
    """A random XLM-R with the toy tokenizer, as transformers saves it."""
    tokenizer = xlmr_tokenizer()
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 40, "type_vocab_size": 1, "pad_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(2)
    XLMRobertaForMaskedLM(XLMRobertaConfig(**(sizes | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def values_of(folder: Path, xlmr: Path) -> dict:
    """Captions in German of drawn images, 12 to learn from and 6 to select on and to measure."""
    folder.mkdir(exist_ok=True)
    for split, numbers in {"train": range(12), "val": range(100, 106)}.items():
        rows = []
        for number in numbers:
            (folder / f"{number}.jpg").write_bytes(toy_image(number)[1])
            rows.append({"image": f"{number}.jpg", "caption": "ein Hund" if number % 2 else "ein Hund a dog"})
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "retrieval",
        "data": {
            "reader": "own_captions",
            "files": {split: str(folder / f"{split}.jsonl") for split in ("train", "val")},
            "media_root": str(folder),
        },
        "split": "val",
        "swap_text": str(xlmr),
        "finetune": {"epochs": 1, "batch_size": 4, "precision": "float32", "max_tokens": 16},
    }


def graph_of(model: Path, values: dict) -> Graph:
    files = tuple(SourceFile(str(path), "model") for path in sorted(model.iterdir()) if path.name != "README.md")
    evaluation = EvaluationConfig.model_validate(values)
    return Graph(task_nodes("german", evaluation, files, (), TrainRuntime(), lambda stage: Runtime()))


def run_graph(graph: Graph, store: Store):
    return run(graph, plan(graph, store, "german"), store, InlineRunner(), lambda event: None, {}).nodes


def test_the_swapped_model_is_learned_and_measured_in_another_language(model, tmp_path):
    xlmr, store = xlmr_folder(tmp_path / "xlmr"), Store(str(tmp_path / "store"))
    found = run_graph(graph_of(model, values_of(tmp_path / "data", xlmr)), store)
    parts = {key.partition("/")[0]: node.manifest.parts[0] for key, node in found.items()}
    folders = {key: Path(store.uri_of(part_folder(key, part.record.fingerprint))) for key, part in parts.items()}
    before, after = load_file(model / "model.safetensors"), load_file(folders["swap"] / "model.safetensors")
    kept = [name for name in after if name.startswith(("vision.", "fusion.", "match_head.", "text_proj."))]
    assert len(kept) > 50
    assert all(torch.equal(after[name], before[name]) for name in kept)
    theirs = load_file(xlmr / "model.safetensors")["roberta.embeddings.word_embeddings.weight"]
    assert torch.equal(after["text.encoder.embeddings.word_embeddings.weight"], theirs)
    report = json.loads((folders["swap"] / "swap.json").read_text())
    assert report["origins"]["text_encoder.embeddings.word_embeddings.weight"].startswith("swap_text: ")
    processor = load_processor(folders["finetune"])
    assert processor.decode(processor.texts(["ein dog"])[0][0].tolist()) == "ein dog"
    assert processor.config.max_tokens == 16
    assert json.loads((folders["evaluate"] / "result.json").read_text())["num_examples"] == 12


def test_what_does_not_fit_is_said_before_anything_is_trained(model, tmp_path):
    narrow = xlmr_folder(tmp_path / "narrow", hidden_size=16)
    values = values_of(tmp_path / "data", narrow)
    with pytest.raises(StageFailed, match=r"has a width of 16, the fusion layers take 32; take the encoder of the"):
        run_graph(graph_of(model, values), Store(str(tmp_path / "store")))
    (narrow / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"evaluate.german.swap_text: .* has no tokenizer.json, the vocabulary"):
        graph_of(model, values)
    with pytest.raises(ConfigError, match=r"^evaluate.german.swap_text: .* is no folder of a transformers model"):
        graph_of(model, values | {"swap_text": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="swap_text needs `finetune`"):
        EvaluationConfig.model_validate({**values, "finetune": None})
