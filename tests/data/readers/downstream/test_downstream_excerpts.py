"""Real excerpts of official files load without change: counts and single rows, copied by hand from the raw files."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.sets.downstream import dropped, read
from x2vlm.data.readers.downstream.results import read_results
from x2vlm.errors import SourceUnavailable


@pytest.mark.parametrize(("name", "set_name", "true"), [("dev", "dev", 31), ("test1", "test1", 31)])
def test_nlvr2(excerpts_dir: Path, name: str, set_name: str, true: int) -> None:
    data = read("nlvr2", {"rows": excerpts_dir / f"nlvr2/{name}.json"}, set=set_name)
    assert (len(data.examples), data.dropped) == (60, ())
    assert Counter(example.answers for example in data.examples) == {("True",): true, ("False",): 60 - true}
    assert data.labels == ("False", "True")


def test_nlvr2_first_row(excerpts_dir: Path) -> None:
    first, second = read("nlvr2", {"rows": excerpts_dir / "nlvr2/dev.json"}, set="dev").examples[:2]
    assert first.example_id == "dev-850-0-0"
    assert first.media == ("dev/dev-850-0-img0.png", "dev/dev-850-0-img1.png")
    assert first.texts[0].startswith("The right image shows a curving walkway of dark glass circles")
    assert (first.answers, second.example_id) == (("False",), "dev-850-2-0")
    assert first.group == second.group == "dev-850--0"  # one sentence, two pairs of images


def test_nlvr2_balanced_subset_is_of_the_same_form(excerpts_dir: Path) -> None:
    data = read("nlvr2", {"rows": excerpts_dir / "nlvr2/balanced_dev.json"}, set="dev")
    assert len(data.examples) == 20
    assert data.examples[0].example_id == "dev-896-0-1"


def test_the_test_set_given_as_validation_is_found_at_its_first_row(excerpts_dir: Path) -> None:
    with pytest.raises(SourceUnavailable, match=r"test1\.json: row 0 is of set `test1`, not `dev`.*change the option"):
        read("nlvr2", {"rows": excerpts_dir / "nlvr2/test1.json"}, "val", set="dev")


def test_marvl(excerpts_dir: Path) -> None:
    data = read("marvl", {"rows": excerpts_dir / "marvl/marvl-zh.jsonl"}, language="zh")
    assert (len(data.examples), data.dropped) == (20, ())
    first = data.examples[0]
    assert (first.example_id, first.language, first.answers) == ("zh-0", "zh", ("False",))
    assert first.media == ("zh/images/82-铅笔/82-6.jpg", "zh/images/82-铅笔/82-1.jpg")
    other = read("marvl", {"rows": excerpts_dir / "marvl/marvl-sw.jsonl"}, language="sw")
    assert Counter(example.answers[0] for example in other.examples) == {"True": 10, "False": 10}


def test_a_file_of_another_language_is_not_taken(excerpts_dir: Path) -> None:
    with pytest.raises(SourceUnavailable, match="the row is in `zh`, the file should be in `ta`"):
        read("marvl", {"rows": excerpts_dir / "marvl/marvl-zh.jsonl"}, language="ta")


@pytest.mark.parametrize(("language", "prefix"), [("en", ""), ("ar", "ar:")])
def test_xvnli_counts_rows_without_an_agreed_label(excerpts_dir: Path, language: str, prefix: str) -> None:
    data = read("xvnli", {"rows": excerpts_dir / f"xvnli/{language}_test.jsonl"}, language=language)
    found = Counter(example.answers[0] for example in data.examples)
    assert found == {"entailment": 14, "contradiction": 13, "neutral": 12}
    assert [rule for _, rule in dropped(data)] == ["other_label"]
    first = data.examples[0]
    assert (first.example_id, first.media) == (f"{prefix}759822302.jpg#2r1c", ("759822302.jpg",))
    assert data.labels == ("contradiction", "entailment", "neutral")


def test_vqa(excerpts_dir: Path) -> None:
    files = {"questions": excerpts_dir / "vqav2/questions.json", "annotations": excerpts_dir / "vqav2/annotations.json"}
    data = read("vqa", files, "train", media="train2014/COCO_train2014_{image_id:012d}.jpg", data_subtype="train2014")
    assert [example.example_id for example in data.examples] == ["458752000", "458752001", "458752002"]
    first = data.examples[0]
    assert first.media == ("train2014/COCO_train2014_000000458752.jpg",)
    assert first.texts == ("What is this photo taken looking through?",)
    assert first.answers == ("net", "net", "net", "netting", "net", "net", "mesh", "net", "pitcher", "orange")
    with pytest.raises(SourceUnavailable, match="it is of `train2014`, not of `val2014`"):
        read("vqa", files, "val", media="{image_id}", data_subtype="val2014")


def test_visual_genome_questions_weigh_half(excerpts_dir: Path) -> None:
    rows = {"rows": excerpts_dir / "visual_genome/question_answers.json"}
    data = read("vg_qa", rows, "train", media="{image_id}.jpg")
    assert (len(data.examples), data.dropped) == (8, ())
    first = data.examples[0]
    assert (first.example_id, first.answers, first.weight) == ("vg-987278", ("sailboats",), 0.5)
    assert read("vg_qa", rows, "train", media="{image_id}.jpg", answers="verbatim").examples[0].answers == (
        "Sailboats.",
    )


def test_gqa_and_xgqa(excerpts_dir: Path) -> None:
    [one] = read("gqa", {"questions": excerpts_dir / "gqa/questions.json"}, "val").examples
    assert (one.example_id, one.media, one.answers) == ("202218649", ("n578564.jpg",), ("picture",))
    german = read("gqa", {"questions": excerpts_dir / "xgqa/few_shot/de/train_1.json"}, "train", language="de")
    english = read("gqa", {"questions": excerpts_dir / "xgqa/few_shot/en/train_1.json"}, "train")
    assert len(german.examples) == len(english.examples) == 27
    assert german.examples[0].example_id == "de:202158849"
    assert german.examples[0].texts == ("Ist der Bus in der Nähe der Menschen schwarz und klein?",)
    assert [one.answers for one in german.examples] == [one.answers for one in english.examples]


def test_wit(excerpts_dir: Path) -> None:
    data = read("wit", {"rows": excerpts_dir / "wit/test_en.jsonl"})
    assert (len(data.examples), data.dropped) == (5, ())
    assert data.examples[0].texts == ("311 South Wacker Drive in Chicago was designed by HKS",)
    assert data.examples[0].media == ("311_South_Wacker_Drive_060528.jpg",)
    assert len({example.group for example in data.examples}) == 4  # rows 2 and 3 are of one image
    greek = read("wit", {"rows": excerpts_dir / "wit/test_el.jsonl"}, language="el")
    assert greek.examples[0].example_id == "el:0"


def test_coco_captions(excerpts_dir: Path) -> None:
    data = read("coco_captions", {"annotations": excerpts_dir / "coco/annotations/captions_train2017.json"}, "train")
    assert len({example.group for example in data.examples}) == len(data.examples)
    first = data.examples[0]
    assert (first.example_id, first.media) == ("790", ("000000000790.jpg",))
    assert first.texts[0] == "a family is sitting down at a table to have cake"
    assert {len(example.texts) for example in data.examples} == {5}


def test_results_of_captions_and_expressions(excerpts_dir: Path) -> None:
    captions = read_results(excerpts_dir / "coco/results/captions_val2014_fakecap_results.json", "image_id", "caption")
    assert len(captions) == 1000
    assert captions["391895"] == "Man riding a motor bike on a dirt road on the countryside."
    expressions = read_results(excerpts_dir / "refcoco/sample_expressions_testA.json", "ref_id", "sent")
    assert (len(expressions), expressions["47"]) == (1975, "man in black")  # of 1,984 rows 9 repeat another one
