"""The card of a model says what it was given, and that the rest is unknown."""

import pytest
import yaml

from tests.support.models.tiny import tiny_config, tiny_model
from x2vlm.inference.card import CardFacts, render_card
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.models.config import ModelConfig

FULL = CardFacts(
    name="Toy",
    lineage_root="ab12",
    training={"steps": 120, "seed": 7},
    contamination={"coco_karpathy_test": {"found": 3, "searched": 5000}, "flickr30k": None},
    licence="Apache-2.0",
    limits=("Saw English only.", "Counts badly."),
)


def header_and_body(text: str) -> tuple[dict, str]:
    before, header, body = text.split("---\n", 2)
    assert before == ""
    return yaml.safe_load(header), body


def section(body: str, title: str) -> str:
    return body.split(f"## {title}\n\n", 1)[1].split("\n\n## ")[0]


def test_everything_given_is_said(tmp_path):
    model = tiny_model(num_frames=2)
    save_pretrained(model, tmp_path, card=FULL)
    header, body = header_and_body((tmp_path / "README.md").read_text())
    assert header == {"library_name": "x2vlm", "license": "apache-2.0", "tags": ["x2vlm", "vision-language"]}
    assert body.startswith("\n# Toy\n")
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in body
    assert "| clips | up to 2 frames" in body
    assert "over time" not in body
    vision = model.config.vision.model_copy(update={"temporal": "attention"})
    attentive = render_card(model.config.model_copy(update={"vision": vision}), 1, CardFacts(name="x"))
    assert "| clips | up to 2 frames, in order, with attention over time |" in attentive
    assert "`ab12`" in section(body, "Training data")
    assert "| steps | 120 |" in section(body, "Training data")
    found = section(body, "Test pictures in the training data")
    assert "| coco\\_karpathy\\_test | found 3, searched 5000 |" in found
    assert "| flickr30k | not searched for |" in found
    assert section(body, "Licence") == "Apache-2.0"
    assert section(body, "Limits") == "- Saw English only.\n- Counts badly."


@pytest.mark.parametrize("title", ["Training data", "Test pictures in the training data", "Licence", "Limits"])
def test_what_nobody_said_is_not_recorded(title):
    header, body = header_and_body(render_card(ModelConfig(), 1, CardFacts(name="Toy")))
    assert "license" not in header
    assert section(body, title) == "Not recorded."


def test_nothing_searched_differs_from_unknown():
    _, body = header_and_body(render_card(ModelConfig(), 1, CardFacts(name="Toy", contamination={}, limits=())))
    assert section(body, "Test pictures in the training data") == "No test set was searched for."
    assert section(body, "Limits") == "None were named."


def test_given_texts_cannot_break_out():
    facts = CardFacts(
        name="x\n---\n# Not a title <script>",
        lineage_root="ab`\n## Limits",
        training={"a|b": "c|d\n| e | f |"},
        licence="mit\ntags: [evil]",
        limits=("one\n## Licence\n\nMIT",),
    )
    header, body = header_and_body(render_card(tiny_config(), 1, facts))
    assert set(header) == {"library_name", "license", "tags"}
    assert header["tags"] == ["x2vlm", "vision-language"]
    lines = body.split("\n")
    assert [line for line in lines if line.startswith("#")][1:] == [
        "## Model", "## Training data", "## Test pictures in the training data", "## Licence", "## Limits", "## Use",
    ]  # fmt: skip
    assert "<script>" not in body.replace("\\<", "")
    assert "| a\\|b | c\\|d \\| e \\| f \\| |" in lines


def test_equal_facts_give_equal_bytes():
    assert render_card(tiny_config(), 5, FULL) == render_card(tiny_config(), 5, FULL)
