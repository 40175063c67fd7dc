"""The check of captioning on made cases, on other ways to record them, and on cases with a mistake."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.golden.runner import run_folder
from tests.golden.tasks import synthetic_captioning as made
from tests.golden.tasks.kinds import DOWNSTREAM_CHECKS


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write_captioning_case(tmp_path_factory.mktemp("golden"))


def excesses(folder: Path) -> list[str]:
    return [difference.name for difference in DOWNSTREAM_CHECKS["captioning"](folder) if difference.is_excess]


def rewrite(case: Path, change) -> Path:
    """The case with its case.json changed, put back by the caller's fixture."""
    info = json.loads((case / "case.json").read_text())
    change(info)
    (case / "case.json").write_text(json.dumps(info))
    return case


@pytest.fixture
def changed(case: Path):
    """A function that changes the case's record until the end of the test."""
    before, arrays = (case / "case.json").read_text(), (case / "tensors.safetensors").read_bytes()
    yield lambda change: rewrite(case, change)
    (case / "case.json").write_text(before)
    (case / "tensors.safetensors").write_bytes(arrays)


def test_a_made_case_agrees_and_holds_what_it_should_prove(case: Path) -> None:
    found = DOWNSTREAM_CHECKS["captioning"](case)
    assert not [difference.name for difference in found if difference.is_excess]
    assert len(found) == 2 + len(made.SETTINGS)
    captions = json.loads((case / "case.json").read_text())["captions"]
    ended = [made.SEP in row for rows in captions.values() for row in rows]
    assert True in ended
    assert False in ended  # cut by the reference's limit
    assert len({json.dumps(rows) for rows in captions.values()}) >= 4  # the settings matter


def test_the_runner_finds_the_check(case: Path) -> None:
    (outcome,) = run_folder(case.parents[1])
    assert outcome.name == "downstream/captioning"
    assert outcome.line().startswith("ok")


def test_texts_may_be_recorded_with_the_first_image_alone_and_without_end_tokens(changed) -> None:
    def without_ends(info) -> None:
        for name, rows in info["captions"].items():
            plain = [[token for token in row if token not in (made.SEP, made.PAD)] for row in rows]
            info["captions"][name] = {"all": plain, "settings": {"num_beams": 3 if "beam" in name else 1}}

    assert not excesses(changed(without_ends))


def test_a_case_with_the_first_image_alone(tmp_path: Path) -> None:
    folder = made.write_captioning_case(tmp_path, names_settings=True)
    found = DOWNSTREAM_CHECKS["captioning"](folder)
    assert not [difference.name for difference in found if difference.is_excess]
    assert len(found) == 2 + 2 * len(made.SETTINGS)
    captions = json.loads((folder / "case.json").read_text())["captions"]
    lengths = {len([t for t in value["first_image_alone"][0] if t]) for value in captions.values()}
    assert max(lengths) == 1 + made.MAX_LENGTH - len(made.PROMPT)  # two tokens fewer than in the batch of three


@pytest.mark.parametrize("setting", list(made.SETTINGS))
def test_one_wrong_token_is_an_excess(changed, setting: str) -> None:
    def wrong(info) -> None:
        info["captions"][setting][1][2] = 5 if info["captions"][setting][1][2] != 5 else 6

    found = excesses(changed(wrong))
    assert [name.split(" ")[0] for name in found] == [setting]


@pytest.mark.parametrize("mode", ["causal", "fg_free"])
def test_a_wrong_loss_or_mask_is_an_excess(changed, case: Path, mode: str) -> None:
    def more(info) -> None:
        info["train_losses"][mode] += 1e-4

    assert excesses(changed(more)) == [f"loss {mode}"]
    tensors = load_file(case / "tensors.safetensors")
    tensors[f"train.{mode}.attention_mask"] = tensors[f"train.{mode}.attention_mask"].clone().fill_(1)
    save_file(tensors, case / "tensors.safetensors")
    assert f"loss {mode}" in excesses(changed(lambda info: info["train_losses"].update({mode: 0.0})))


def test_a_case_without_texts_is_an_excess(changed) -> None:
    assert excesses(changed(lambda info: info.update(captions={}))) == ["captions: nothing recorded"]
