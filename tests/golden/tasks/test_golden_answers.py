"""The checks of answers on cases made by the naive version, and on cases with a mistake."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from tests.golden.__main__ import main
from tests.golden.runner import run_folder
from tests.golden.tasks.kinds import kind_of
from tests.golden.tasks.naive_answers import write_answer_cases

CASES = ("nlvr", "video_qa", "vqa", "vqa_classes")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("answers")
    write_answer_cases(root)
    return root


@pytest.fixture
def broken(made, tmp_path):
    """A copy to put mistakes into."""
    return shutil.copytree(made, tmp_path / "answers")


def test_every_kind_is_within_its_tolerances(made):
    outcomes = list(run_folder(made))
    assert [outcome.line() for outcome in outcomes if outcome.failed or outcome.unsupported] == []
    assert {outcome.name for outcome in outcomes} == {f"downstream/{name}" for name in CASES}
    names = {difference.name.split(":")[0] for outcome in outcomes for difference in outcome.differences}
    assert names == {
        "logits", "loss", "first_token_probs", "topk_ids", "topk_probs", "train_loss", "weight_origin.json",
        "weight_origin_half_depth.json",
    }  # fmt: skip
    assert main([str(made)]) == 0


@pytest.mark.parametrize("name", CASES)
def test_another_folder_name_is_recognised_by_its_arrays(broken, name):
    shutil.move(broken / "downstream" / name, broken / "other_place" / "seed9")
    outcome = next(outcome for outcome in run_folder(broken) if outcome.name.endswith("seed9"))
    assert outcome.differences
    assert not outcome.failed


def test_all_kinds_of_the_layout_are_told_by_arrays():
    assert kind_of("a", {"in.text_ids": [2, 4], "in.target_bbox": [2, 4]}, {}) == "grounding"
    assert kind_of("a", {"in.image": [2, 3, 8, 8], "w.mlm_bias": [9]}, {}) == "captioning"
    assert kind_of("a", {"out.sims": [2, 3], "train.idx": [2]}, {}) == "retrieval"
    assert kind_of("a", {"train.anything": [2]}, {}) is None


@pytest.mark.parametrize(
    ("case", "array", "change"),
    [
        ("nlvr", "out.logits", 1e-4),
        ("nlvr", "w.cls_head.1.weight", 1e-2),
        ("nlvr", "in.targets", "flip"),
        ("video_qa", "in.image", "reverse"),
        ("vqa_classes", "in.weights", 1e-2),
        ("vqa", "out.topk_probs", 1e-4),
        ("vqa", "out.first_token_probs", 1e-4),
        ("vqa", "out.topk_ids", "last"),
        ("vqa", "train.weights", 1e-2),
        ("vqa", "in.question_atts", "ones"),
    ],
)
def test_a_wrong_array_is_an_excess(broken, case, array, change):
    path = broken / "downstream" / case / "tensors.safetensors"
    tensors = load_file(path)
    value = tensors[array]
    if change == "flip":
        value = 1 - value
    elif change == "reverse":
        value = value.flip(0).contiguous()
    elif change == "ones":
        value = value * 0 + 1
    elif change == "last":  # an answer that is not on the shortlist
        listed = set(value[0].tolist())
        value = value.clone()
        value[0, 0] = next(number for number in range(18) if number not in listed)
    else:
        value = value + change
    save_file(tensors | {array: value}, path)
    (outcome,) = run_folder(path.parent)
    assert "EXCESS" in outcome.line(), outcome.line()


@pytest.mark.parametrize(
    ("file", "entry", "value"),
    [
        ("weight_origin.json", "text_decoder.bert.encoder.layer.1.output.dense.weight",
         "text_encoder.bert.encoder.layer.3.output.dense.weight"),
        ("weight_origin.json", "text_decoder.cls.predictions.bias", None),
        ("weight_origin_half_depth.json", "text_decoder.bert.encoder.layer.0.output.dense.weight",
         "text_encoder.bert.encoder.layer.4.output.dense.weight"),
        ("weight_origin_half_depth.json", "text_decoder.bert.encoder.layer.0.crossattention.self.key.weight",
         "text_encoder.bert.encoder.layer.3.crossattention.self.key.weight"),
    ],
)  # fmt: skip
def test_a_wrong_origin_is_an_excess(broken, file, entry, value):
    folder = broken / "downstream" / "vqa"
    origins = json.loads((folder / file).read_text())
    assert origins[entry] != value
    (folder / file).write_text(json.dumps(origins | {entry: value}))
    if value is None:
        fresh = load_file(folder / "fresh_weights.safetensors")
        model = load_file(broken / "model.safetensors")
        save_file(fresh | {entry: model["text_encoder.cls.predictions.bias"]}, folder / "fresh_weights.safetensors")
    (outcome,) = run_folder(folder)
    assert "entries from elsewhere" in outcome.line()
    assert outcome.failed


def test_recorded_origins_decide_which_weights_are_compared(broken):
    """A case whose decoder was filled in another way still compares its numbers; only its origins are an excess."""
    folder = broken / "downstream" / "vqa"
    origins = json.loads((folder / "weight_origin.json").read_text())
    layer = "text_decoder.bert.encoder.layer.1."
    moved = {k: v.replace(".layer.4.", ".layer.3.") for k, v in origins.items() if k.startswith(layer) and v}
    (folder / "weight_origin.json").write_text(json.dumps(origins | moved))
    (outcome,) = run_folder(folder)
    excess = {difference.name.split(":")[0] for difference in outcome.differences if difference.is_excess}
    assert {"topk_probs", "weight_origin.json"} <= excess
