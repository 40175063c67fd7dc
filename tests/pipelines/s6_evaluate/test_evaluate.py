"""The evaluation stage with a real small model: what it reads of its folder, and that it asks as training did."""

import hashlib
import json
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.flow.fingerprint import sha256_of
from pipelines.flow.stage import Input
from pipelines.s6_evaluate.config import EvaluateConfig
from pipelines.s6_evaluate.stage import EVALUATE, evaluate_part, plan_evaluation
from tests.support.models.folders import PHOTOS, small_model, tokenizer_of
from tests.support.parts import Run, as_part, run_stage
from x2vlm.config import FrozenConfig, parse_config
from x2vlm.data.media.images import open_image
from x2vlm.data.shards.packs import Payload, write_media_pack
from x2vlm.errors import ConfigError, StageFailed
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.inference.processor import processor_for
from x2vlm.samples import Box, Caption, Concept, Grain, Media, Sample, sample_key, sample_table, write_table
from x2vlm.tasks.catalog import TASKS
from x2vlm.tasks.config import GroundingConfig, RetrievalConfig

CAPTIONS = (
    "a dog on a street with people",
    "two people on a street at night",
    "a red bus",
    "a cat and a dog sleep here",
)


def saved_model(folder: Path, kind: str = "bert", **processor: int) -> Input:
    """A small random model as the pre-training stage commits it."""
    folder.mkdir(parents=True)
    tokens = folder.with_name(f"{folder.name}-tokenizer")
    tokens.mkdir()
    tokenizer = tokenizer_of(kind, tokens)
    model = small_model(kind, tokenizer)
    save_pretrained(model, folder, processor=processor_for(model.config, tokenizer, **processor))
    return Input("pretrain/test", "root", (as_part("00000", folder),))


def held_out(folder: Path, texts: tuple[str, ...]) -> dict[str, tuple[Input, ...]]:
    """A photo for each text, with a box that the text names too."""
    samples, payloads = [], []
    for number, text in enumerate(texts):
        data = PHOTOS[number].read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        payloads.append(Payload(sha256, "jpg", PHOTOS[number]))
        media = Media("image", sha256, len(data), *open_image(data).size, "jpg")
        concepts = (Concept(Grain.OBJECT, text, Box(1, 1, 40, 30), (), f"{number}-a"),)
        row = str(number)
        samples.append(
            Sample(sample_key("toy", row), "toy", row, "val", "image", "", (Caption(text),), concepts, media=media)
        )
    for name in ("rows", "media"):
        (folder / name).mkdir(parents=True)
    write_table(sample_table(samples), folder / "rows" / "rows.parquet")
    write_media_pack(folder / "media", payloads)
    inputs = {slot: (Input(f"{slot}/toy", "root", (as_part("00000", folder / slot),)),) for slot in ("rows", "media")}
    return {**inputs, "contamination": ()}


def evaluate(folder: Path, model: Input, texts: tuple[str, ...], processes: float = 1, **config: object) -> Run:
    inputs = {"model": (model,), **held_out(folder / "data", texts)}
    stage = replace(EVALUATE, run_part=partial(evaluate_part, num_cpus=processes))
    return run_stage(stage, EvaluateConfig.model_validate({"task": "retrieval", **config}), inputs, folder / "out")


def scores(run: Run) -> list[float]:
    return pq.read_table(run.folder / "retrieval" / "predictions.parquet")["top_score"].to_pylist()


def test_texts_are_cut_where_the_models_own_processor_cuts_them(tmp_path: Path) -> None:
    short = saved_model(tmp_path / "short", max_tokens=5)  # [CLS], three pieces, [SEP]
    long = saved_model(tmp_path / "long")
    three_words = tuple(" ".join(text.split()[:3]) for text in CAPTIONS)
    cut = evaluate(tmp_path / "cut", short, CAPTIONS)
    assert scores(cut) == pytest.approx(scores(evaluate(tmp_path / "by_hand", long, three_words)), abs=1e-5)
    whole = evaluate(tmp_path / "whole", long, CAPTIONS)
    assert max(abs(a - b) for a, b in zip(scores(cut), scores(whole), strict=True)) > 1e-3
    result = json.loads((whole.folder / "retrieval" / "result.json").read_text())
    assert result["headline"] in result["metrics"]
    assert result["config"] == {
        "task": "retrieval",
        "options": RetrievalConfig().model_dump(mode="json"),
        "batch_size": 32,
        "split": "",
        "card": "",
        "card_split": "",
        "known_as": [],
    }
    assert (result["card"], result["card_split"]) == ("", "")
    page = (whole.folder / "retrieval" / "examples.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == len(scores(whole)) == 8
    assert "data:image/jpeg;base64," in page


@pytest.mark.parametrize(("kind", "tokenizer"), [("bert", "vocab.txt"), ("xlm-roberta", "tokenizer.json")])
def test_a_model_is_evaluated_with_the_tokenizer_that_its_folder_has(tmp_path: Path, kind: str, tokenizer: str) -> None:
    model = saved_model(tmp_path / "model", kind)
    run = evaluate(tmp_path, model, ("a dog", "a red bus"), task="grounding")
    assert run.results["grounding"].summary["num_examples"] == 2
    inputs = {"model": (model,), "rows": (), "media": (), "contamination": ()}
    (part,) = plan_evaluation(EvaluateConfig(task="grounding"), inputs)
    read = [read.file.path for read in part.reads]
    assert read == ["config.json", "model.safetensors", "preprocessor_config.json", tokenizer]
    assert part.spec == {"task_version": TASKS["grounding"].version}


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "vocab.txt"])
def test_a_model_without_a_processor_is_refused_when_planning(tmp_path: Path, missing: str) -> None:
    saved_model(tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    model = Input("pretrain/old", "root", (as_part("00000", tmp_path / "model"),))
    with pytest.raises(StageFailed, match=r"pretrain/old holds no processor.*vocab.txt or tokenizer.json.*pre-train"):
        plan_evaluation(EvaluateConfig(task="retrieval"), {"model": (model,), "rows": (), "media": ()})


def test_a_text_of_punctuation_is_named_with_its_source(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"retrieval on toy: empty_caption: '\.\.\.'.*take the text out"):
        evaluate(tmp_path, model, ("a dog", "..."))


def test_options_are_the_tasks_own() -> None:
    config = EvaluateConfig.model_validate({"task": "retrieval", "options": {"shortlist": 3}})
    assert config.options == RetrievalConfig(shortlist=3)
    assert EvaluateConfig(task="grounding").options == GroundingConfig()
    assert EvaluateConfig.model_validate(config.model_dump(mode="json")) == config
    # A default that is written out asks the same question.
    told = EvaluateConfig.model_validate({"task": "retrieval", "options": {"shortlist": 128}})
    assert sha256_of(told) == sha256_of(EvaluateConfig(task="retrieval")) != sha256_of(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task": "retreival"}, r"task: .*no task is called 'retreival'; did you mean `retrieval`"),
        ({"task": "zzz"}, r"task: .*there are: .*grounding.*retrieval"),
        ({"task": "retrieval", "options": {"shortlst": 3}}, r"options.shortlst: unknown key; did you mean `shortlist`"),
        (
            {"task": "grounding", "options": {"shortlist": 3}},
            r"options.shortlist: unknown key; known keys: .*clip_boxes, iou, iou_thresh",
        ),
        ({"task": "retrieval", "options": {"shortlist": 0}}, r"options.shortlist: .*greater than 0 \(got 0\)"),
        ({"task": "retrieval", "options": 3}, r"options: .*\(got 3\)"),
        ({"task": "retrieval", "max_tokens": 30}, r"max_tokens: unknown key"),
    ],
)
def test_wrong_tasks_and_options_are_named_with_what_was_meant(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"here: 1 problem\(s\)\n  {message}"):
        parse_config(EvaluateConfig, values, "here")


def test_every_task_of_the_table_can_be_loaded_and_has_options_without_required_fields() -> None:
    for name, spec in TASKS.items():
        assert spec.name == name
        assert callable(spec.load().evaluate)
        assert isinstance(EvaluateConfig(task=name).options, spec.config_type)
        assert issubclass(spec.config_type, FrozenConfig)


def test_several_processes_write_the_same_bytes_and_one_that_dies_ends_all(tmp_path: Path, monkeypatch) -> None:
    model = saved_model(tmp_path / "model")
    alone = evaluate(tmp_path / "one", model, CAPTIONS, batch_size=2)
    shared = evaluate(tmp_path / "three", model, CAPTIONS, processes=3.5, batch_size=2)
    assert len(alone.bytes_of()) == 3
    assert shared.bytes_of() == alone.bytes_of()
    monkeypatch.setattr("pipelines.s6_evaluate.processes._work", dies)
    with pytest.raises(StageFailed, match=r"exit codes .*1: -9.*ran out of memory"):
        evaluate(tmp_path / "dead", model, CAPTIONS, processes=2, batch_size=2)


def dies(files: object, rank: int, number: int, folder: str, ends_with_parent: object) -> None:
    """The work of a process that the kernel ends, beside one that waits for it."""
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
