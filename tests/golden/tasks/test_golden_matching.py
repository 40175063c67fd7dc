"""The checks of retrieval and grounding against the naive version, and that a wrong number is seen."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.golden.naive import Naive
from tests.golden.synthetic import SIZES, describe, drawn_state
from tests.golden.tasks.kinds import DOWNSTREAM_CHECKS
from tests.golden.tasks.synthetic_matching import write_grounding, write_retrieval
from tests.support.models.reference_shapes import pretrained


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("downstream")
    cfg = describe(SIZES, text_heads=6, temperature=0.05)
    m = Naive(drawn_state(pretrained(SIZES), SIZES, seed=2, temperature=0.05), cfg)
    save_file(m.state, root / "model.safetensors")
    (root / "config.json").write_text(json.dumps(cfg))
    write_retrieval(root / "downstream" / "retrieval", m)
    write_grounding(root / "downstream" / "grounding", m)
    return root


@pytest.mark.parametrize(("kind", "least"), [("retrieval", 21), ("grounding", 3)])
def test_every_recorded_number_is_ours(cases: Path, kind: str, least: int) -> None:
    found = DOWNSTREAM_CHECKS[kind](cases / "downstream" / kind)
    assert not [item for item in found if item.is_excess]
    assert len(found) >= least


@pytest.mark.parametrize(
    ("kind", "array"),
    [
        ("retrieval", "out.sims"),
        ("retrieval", "out.score_i2t"),
        ("retrieval", "out.score_t2i"),
        ("retrieval", "train.itm_logits"),
        ("retrieval", "train.image_negative_weights"),
        ("retrieval", "train.text_neg_idx"),
        ("retrieval", "train.idx"),
        ("grounding", "out.pred_bbox_cxcywh"),
        ("grounding", "in.target_bbox"),
    ],
)
def test_a_wrong_array_is_an_excess(cases: Path, tmp_path: Path, kind: str, array: str) -> None:
    shutil.copytree(cases, tmp_path / "all")
    path = tmp_path / "all" / "downstream" / kind / "tensors.safetensors"
    tensors = load_file(path)
    value = tensors[array].clone()
    value[0] = value[0] + 0.01 if value.is_floating_point() else value[1]
    save_file(tensors | {array: value}, path)
    assert any(item.is_excess for item in DOWNSTREAM_CHECKS[kind](path.parent))


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("retrieval", "metrics", "txt_r1"),
        ("retrieval", "train_losses", "loss_itc"),
        ("grounding", "losses", "loss_giou"),
    ],
)
def test_a_wrong_number_is_an_excess(cases: Path, tmp_path: Path, kind: str, part: str, name: str) -> None:
    shutil.copytree(cases, tmp_path / "all")
    path = tmp_path / "all" / "downstream" / kind / "case.json"
    info = json.loads(path.read_text())
    info[part][name] += 0.1
    path.write_text(json.dumps(info))
    (wrong,) = [item for item in DOWNSTREAM_CHECKS[kind](path.parent) if item.is_excess]
    assert wrong.name == name
