"""The runner on the public cases, on made ones of every held-back kind, and on cases with a mistake."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import synthetic
from tests.golden.__main__ import main
from tests.golden.naive import Naive, run, run_text_only
from tests.golden.procedural import recipe_values
from tests.golden.runner import BESIDE_CASES, run_folder
from tests.support.models.reference_shapes import BASE, Sizes, pretrained

TINY = Sizes(
    vision=48, depth=2, vision_heads=6, grid=5, vision_inner=192, text=36, text_layers=2, fusion_layers=2, inner=100,
    vocab=80, positions=40, embed=12,
)  # fmt: skip
KINDS = {
    "image", "image_no_matching", "video", "text_only", "regions", "regions/all_image_rows.json",
    "regions_box_loss_on_images", "mixed", "mixed_text_batch", "trajectory_image", "param_groups.json",
    "resolution/res48", "resolution/res128", "resolution/table_resize", "separate_encoders/image",
    "separate_encoders/regions", "separate_encoders/parallel_text", "starting_weights/per_block_tables",
    "starting_weights/shared_table", "starting_weights/bert_origin.json", "base_procedural/image",
    "base_procedural/regions",
}  # fmt: skip


@pytest.fixture(scope="module")
def held_back(tmp_path_factory):
    """A folder with the layout of the held-back set, made by the naive version."""
    root = tmp_path_factory.mktemp("golden")
    synthetic.write_model_cases(root)
    synthetic.write_starting_weights(root / "starting_weights")
    synthetic.write_separate_encoders(root / "separate_encoders")
    synthetic.write_base_procedural(root / "base_procedural", TINY, text_heads=6)
    return root


@pytest.fixture
def broken(held_back, tmp_path):
    """A copy of the made folder to put mistakes into."""
    return shutil.copytree(held_back, tmp_path / "golden")


def test_every_public_case_is_within_its_tolerances(golden_dir):
    outcomes = list(run_folder(golden_dir))
    assert not [outcome.line() for outcome in outcomes if outcome.failed]
    assert len(outcomes) == 16
    assert not any(outcome.unsupported for outcome in outcomes)


def test_every_held_back_kind_is_within_its_tolerances(held_back):
    outcomes = list(run_folder(held_back))
    assert not [outcome.line() for outcome in outcomes if outcome.failed]
    assert {outcome.name for outcome in outcomes} == KINDS


@pytest.mark.slow
def test_the_naive_version_reproduces_the_public_numbers(golden_dir):
    """What the made cases rest on: the naive version agrees with the reference itself."""
    m = Naive(load_file(golden_dir / "model.safetensors"), json.loads((golden_dir / "config.json").read_text()))
    for name in ("image", "regions", "text_only"):
        info, tensors = (
            json.loads((golden_dir / name / "case.json").read_text()),
            load_file(golden_dir / name / "tensors.safetensors"),
        )
        inputs = {key.removeprefix("in."): value for key, value in tensors.items() if key.startswith("in.")}
        if name == "text_only":
            out, losses = run_text_only(m, inputs)
        else:
            out, losses = run(m, inputs, (tensors["out.image_neg_idx"], tensors["out.text_neg_idx"]))
        assert {key for key in tensors if key.startswith("out.")} <= {f"out.{key}" for key in out}
        for key, value in out.items():
            if f"out.{key}" in tensors:
                assert (value.double() - tensors[f"out.{key}"].double()).abs().max() < 2e-5, key
        for key, value in info["losses"].items():
            assert losses[key].item() == pytest.approx(value, abs=2e-5)


def test_the_recipe_gives_the_public_weights(golden_dir):
    state = load_file(golden_dir / "model.safetensors")
    for name, value in state.items():
        if value.is_floating_point() and name != "temp" and ".decoder." not in name:
            assert torch.equal(recipe_values(name, tuple(value.shape), seed=1), value), name


def test_the_shape_table_is_the_reference_one(golden_dir):
    expected = json.loads((golden_dir / "base_state_dict.json").read_text())["state_dict"]
    assert {name: list(shape) for name, shape in pretrained(BASE).items()} == {n: s for n, (s, _) in expected.items()}


@pytest.mark.parametrize(
    ("case", "array", "change"),
    [
        ("image", "out.text_feat", 1e-4),
        ("video", "out.vision_embeds", 1e-4),
        ("regions", "out.pred_bbox_cxcywh", 1e-4),
        ("separate_encoders/parallel_text", "out.itm_logits", 1e-4),
        ("separate_encoders/regions", "out.cross_3", 1e-4),
        ("resolution/table_resize", "out.5_to_8", 1e-4),
        ("base_procedural/image", "out.vision_embeds_mean", 1e-4),
        ("mixed", "after.vision_proj.weight", 1e-3),
        ("text_only", "in.masked_ids", 1),
        ("image", "grad.vision_encoder.cls_token", 1e-1),
    ],
)
def test_a_wrong_array_is_an_excess(broken, case, array, change):
    path = broken / case / "tensors.safetensors"
    tensors = load_file(path)
    if array not in tensors:
        array = next(name for name in tensors if name.startswith("grad."))
    tensors[array] = tensors[array] + (change if tensors[array].is_floating_point() else (tensors[array] >= 0).long())
    save_file(tensors, path)
    (outcome,) = [outcome for outcome in run_folder(broken / case) if not outcome.name.endswith(".json")]
    assert outcome.failed, outcome.line()
    assert "EXCESS" in outcome.line()


@pytest.mark.parametrize(
    ("file", "path", "value"),
    [
        ("image/case.json", ("losses", "loss_itc"), 9.0),
        ("video/case.json", ("losses_f64", "loss_mlm"), 9.0),
        ("regions/case.json", ("grad_norms", "temp"), 0.0),
        ("image/case.json", ("grad_norms", "text_proj.bias"), None),
        ("mixed/case.json", ("loss_weights", "regions"), 1.0),
        ("image_no_matching/case.json", ("options", "ret_match_loss"), True),
        ("param_groups.json", ("groups", "temp", "weight_decay"), 0.0),
        ("param_groups.json", ("groups_separate_lr", "temp", "group"), 5),
        ("starting_weights/bert_origin.json", ("6_to_6_and_3", "text_encoder.bert.encoder.layer.6.output.dense.bias"),
         "bert.encoder.layer.0.output.dense.bias"),
        ("base_procedural/image/case.json", ("image_recipe", "seed"), 78),
    ],
)  # fmt: skip
def test_a_wrong_number_fails(broken, file, path, value):
    target = broken / file
    recorded = json.loads(target.read_text())
    place = recorded
    for key in path[:-1]:
        place = place[key]
    assert place[path[-1]] != value
    place[path[-1]] = value
    target.write_text(json.dumps(recorded))
    if target.name in BESIDE_CASES:
        assert any(difference.is_excess for difference in BESIDE_CASES[target.name](target))
    else:
        assert any(outcome.failed for outcome in run_folder(target.parent))


def test_a_folder_alone_finds_its_model_above(held_back):
    outcomes = list(run_folder(held_back / "video"))
    assert [outcome.failed for outcome in outcomes] == [False]


def test_exit_codes_and_names_of_kinds_without_a_check(held_back, broken, tmp_path, capsys):
    assert main([str(held_back / "image")]) == 0
    (broken / "downstream" / "singing").mkdir(parents=True)
    (broken / "downstream" / "singing" / "case.json").write_text("{}")
    assert main([str(broken / "downstream")]) == 2
    assert "singing: no check for a case of the kind downstream/singing" in capsys.readouterr().out
    (broken / "data" / "novelty").mkdir(parents=True)
    (broken / "data" / "novelty" / "case.json").write_text("{}")
    (broken / "elsewhere" / "dancing").mkdir(parents=True)
    (broken / "elsewhere" / "dancing" / "case.json").write_text("{}")
    arrays = {"in.text_ids": torch.zeros(1, 2), "train.steps": torch.zeros(1)}
    save_file(arrays, broken / "elsewhere" / "dancing" / "tensors.safetensors")
    for name in ("downstream", "data", "elsewhere"):
        shutil.copytree(broken / name, tmp_path / "kinds" / name)
    assert main([str(tmp_path / "kinds")]) == 2
    said = capsys.readouterr().out
    assert said.endswith("kinds without a check: data/novelty, downstream/singing, downstream/dancing\n")
    (broken / "image" / "tensors.safetensors").write_bytes(b"short")
    assert main([str(broken / "image")]) == 1
    assert "FAIL  image: SafetensorError" in capsys.readouterr().out
    shutil.copytree(broken / "image", tmp_path / "kinds" / "image")
    assert main([str(tmp_path / "kinds")]) == 1  # what differs comes before what cannot be compared
    (tmp_path / "kinds" / "data" / "novelty" / "case.json").write_text("{")
    assert main([str(tmp_path / "kinds" / "data")]) == 1
    assert "FAIL  novelty: JSONDecodeError" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 3
    assert main([str(tmp_path / "absent")]) == 3
    assert main(["a", "b"]) == 3


@pytest.mark.parametrize(
    "case",
    ["image", "video", "regions", "separate_encoders/parallel_text", "separate_encoders/regions",
     "base_procedural/image", "mixed", "resolution/res48"],
)  # fmt: skip
def test_a_case_may_lack_any_recorded_array(broken, case):
    """Each array of outputs alone, then all of them: what is left is compared, and nothing fails."""
    path = broken / case / "tensors.safetensors"
    whole = load_file(path)
    outputs = sorted(name for name in whole if name.startswith(("out.", "after.", "grad.")))
    (full,) = cases_below(broken / case)
    if case == "mixed":
        outputs = outputs[:2]
    for removed in [*([name] for name in outputs), outputs, ["out.image_neg_idx", "out.text_neg_idx"]]:
        save_file({name: value for name, value in whole.items() if name not in removed}, path)
        (outcome,) = cases_below(broken / case)
        assert not outcome.failed, (removed, outcome.line())
        assert len(outcome.differences) <= len(full.differences)
        named = {difference.name.split(" ")[0] for difference in outcome.differences}
        assert {"losses_mlm", "step"} & named


def cases_below(folder):
    return [outcome for outcome in run_folder(folder) if not outcome.name.endswith(".json")]


@pytest.mark.parametrize("told_by", ["out.fused_match_neg", "out.itm_logits"])
@pytest.mark.parametrize("case", ["image", "regions", "separate_encoders/parallel_text"])
def test_missing_negatives_are_told_by_the_pass_that_used_them(broken, case, told_by):
    """The losses that depend on them are still compared; with another negative the case fails."""
    path = broken / case / "tensors.safetensors"
    tensors = load_file(path)
    kept = {n: v for n, v in tensors.items() if not n.endswith("_neg_idx") and (n == told_by or "_match_neg" not in n)}
    kept = {n: v for n, v in kept.items() if n == told_by or n != "out.itm_logits"}
    save_file(kept, path)
    (outcome,) = cases_below(broken / case)
    assert not outcome.failed, outcome.line()
    assert {"losses_itm", "losses_ttm"} & {difference.name for difference in outcome.differences}
    rows = len(tensors["in.text_ids"])
    first = rows if told_by == "out.itm_logits" else 0
    kept[told_by] = kept[told_by].clone()
    kept[told_by][[first, first + 1]] = kept[told_by][[first + 1, first]]
    save_file(kept, path)
    assert [outcome.failed for outcome in cases_below(broken / case)] == [True]


def moved(folder, *names):
    """Copies of a mixed case whose parts lie elsewhere than beside it."""
    for name in names:
        source, target = name.split(" > ")
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / source, folder / target)


@pytest.mark.parametrize(
    "moves",
    [
        ["mixed > steps/mixed"],
        ["mixed > steps/deep/mixed"],
        ["video > mixed/video", "image > mixed/image", "regions > mixed/regions", "mixed_text_batch > mixed/text"],
        ["video > video_s3", "image > image_s3", "regions > regions_s3", "mixed_text_batch > text_batch_s3",
         "mixed > mixed_s3"],
        ["mixed_text_batch > words", "video > clips", "text_only > x/text_only"],
    ],
    ids=["below", "far_below", "inside", "seeds", "other_names"],
)  # fmt: skip
def test_a_mixed_case_finds_the_batches_of_its_parts(broken, moves):
    moved(broken, *moves)
    target = next((move.split(" > ")[1] for move in moves if move.startswith("mixed >")), "mixed")
    outcomes = [outcome for outcome in run_folder(broken / target) if "history" in case_info(broken / target, outcome)]
    assert [outcome.failed for outcome in outcomes] == [False], [outcome.line() for outcome in outcomes]


def case_info(root, outcome):
    path = root / "case.json" if outcome.name == root.name else root / outcome.name / "case.json"
    return path.read_text() if path.is_file() else ""


def test_a_mixed_case_without_a_batch_says_which_and_where_it_looked(broken):
    shutil.rmtree(broken / "video")
    (outcome,) = run_folder(broken / "mixed")
    assert "no folder with its batch of video; looked for video" in outcome.line()
    shutil.copytree(broken / "image", broken / "image_2")
    shutil.move(broken / "image", broken / "image_1")
    shutil.rmtree(broken / "resolution")
    (broken / "mixed" / "case.json").write_text(
        json.dumps(json.loads((broken / "mixed" / "case.json").read_text()) | {"loss_weights": {"image": 1.0}})
    )
    (outcome,) = run_folder(broken / "mixed")
    assert "several folders with a batch of image" in outcome.line()


def test_weights_that_are_not_the_recipes_are_an_excess(broken):
    checks = json.loads((broken / "base_procedural" / "weight_checks.json").read_text())
    checks["vision_encoder.cls_token"][1] *= 1.01
    (broken / "base_procedural" / "weight_checks.json").write_text(json.dumps(checks))
    outcomes = list(run_folder(broken / "base_procedural"))
    assert all(outcome.failed and "EXCESS weight_checks" in outcome.line() for outcome in outcomes)


@pytest.mark.slow
def test_the_real_base_sizes_by_recipe(tmp_path):
    """255 million parameters from the recipe, image pairs and regions at 224 pixels."""
    synthetic.write_base_procedural(tmp_path / "base_procedural", BASE, text_heads=12)
    outcomes = list(run_folder(tmp_path))
    assert len(outcomes) == 2
    assert not [outcome.line() for outcome in outcomes if outcome.failed]
