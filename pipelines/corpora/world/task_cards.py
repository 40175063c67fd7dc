"""Cards of a world's downstream tasks: every task that can be trained or evaluated on a world, in official files.

Test splits are of the held-out scenes, training and validation of the scenes made for fine-tuning.
"""

from pathlib import Path
from typing import Any

import yaml

from pipelines.corpora.world.drawing.languages import LANGUAGES
from pipelines.corpora.world.drawing.questions import PAIR_LANGUAGES, QUESTION_LANGUAGES
from x2vlm.data.task_cards import TaskCard

Values = dict[str, Any]
TRAIN_IMAGE, TEST_IMAGE = "images/COCO_train2014_{%s:012d}.jpg", "images/COCO_val2014_{%s:012d}.jpg"
KARPATHY = {"media": "images/{filename}"}
FINETUNE = {"annotations": {"path": "coco_karpathy/dataset_coco_finetune.json"}}
HELD_OUT = {"annotations": {"path": "coco_karpathy/dataset_coco.json"}}


def write_task_cards(folder: Path, root: str) -> None:
    """<task>.yaml for every task into `folder`; `root` is the world's folder as cards give folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for card_id, values in _cards().items():
        card = TaskCard(
            id=card_id,
            title=f"Procedural world in the format of {card_id}",
            licence="CC0-1.0",
            availability="shipped",
            root=f"{root}/evaluation",
            media_root=f"{root}/media",
            **values,
        )
        text = yaml.safe_dump(card.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
        (folder / f"{card_id}.yaml").write_text(text, encoding="utf-8")


def _files(**paths: str) -> dict[str, dict[str, str]]:
    return {role: {"path": path} for role, path in paths.items()}


def _cards() -> dict[str, Values]:
    return {
        "coco_retrieval": _karpathy("retrieval"),
        "coco_captioning": _karpathy("captioning"),
        "vqav2": _vqa(),
        "nlvr2": _nlvr2(),
        "refcoco_plus": _refcoco("grounding"),
        "refcoco_plus_weak": _refcoco("weak_grounding", dets=True),
        "winoground": {
            "task": "winoground",
            "reader": "winoground",
            "splits": {"test": _split(rows="winoground/examples.jsonl") | {"options": {"media": "images/{image}.jpg"}}},
        },
        "ovad": {
            "task": "attributes",
            "reader": "ovad",
            "splits": {"test": _split(annotations="ovad/ovad2000.json") | {"options": {"media": "images/{file_name}"}}},
        },
        "msrvtt_retrieval": _msrvtt(),
        "msrvtt_qa": _msrvtt_qa(),
        "multi30k": _multi30k(),
        "xgqa": _xgqa(),
        "xvnli": _xvnli(),
        "marvl": _marvl(),
        "wit": _listed("wit", {"media": "images/{image_name}"}),
        "xflickrco": _listed("xflickrco", {"media": "images/{img_path}"}),
    }


def _split(**paths: str) -> Values:
    return {"files": _files(**paths)}


def _karpathy(task: str) -> Values:
    cut = {"captions": "first_five"}
    both = [{"files": HELD_OUT, "options": cut, "read_as": name} for name in ("test", "val")]
    splits = {"train": {"files": FINETUNE}, "val": {"files": FINETUNE}, "test": {"parts": both}}
    return {"task": task, "reader": "karpathy", "options": KARPATHY, "splits": splits}


def _vqa() -> Values:
    splits = {}
    for name, official, media in (
        ("train", "train2014", TRAIN_IMAGE),
        ("val", "minival2014", TRAIN_IMAGE),
        ("test", "val2014", TEST_IMAGE),
    ):
        splits[name] = _split(
            questions=f"vqa/v2_OpenEnded_mscoco_{official}_questions.json",
            annotations=f"vqa/v2_mscoco_{official}_annotations.json",
        ) | {"options": {"media": media % "image_id", "data_subtype": official}}
    return {"task": "vqa", "reader": "vqa", "files": _files(answers="vqa/answer_list.json"), "splits": splits}


def _nlvr2_splits() -> Values:
    sides = {"left": "images/{left_name}", "right": "images/{right_name}"}
    sets = {"train": "train", "val": "minidev", "test": "dev"}
    return {
        name: _split(rows=f"nlvr2/{one}.json") | {"reader": "nlvr2", "options": {"set": one} | sides}
        for name, one in sets.items()
    }


def _nlvr2() -> Values:
    return {"task": "classification", "reader": "nlvr2", "splits": _nlvr2_splits()}


def _refcoco(task: str, dets: bool = False) -> Values:
    folder = "refcoco_plus"
    train = {"refs": f"{folder}/train_refs.json", "instances": f"{folder}/train_instances.json"}
    test = {"refs": f"{folder}/refs(unc).json", "instances": f"{folder}/instances.json"}
    if dets:
        train |= {"proposals": f"{folder}/train_dets.json"}
        test |= {"proposals": f"{folder}/dets.json"}
    splits = {"train": _split(**train)} | {name: _split(**test) for name in ("val", "testA", "testB")}
    return {"task": task, "reader": "refcoco", "options": {"media": "images/{file_name}"}, "splits": splits}


def _msrvtt() -> Values:
    data = "msrvtt/train_val_videodatainfo.json"
    splits = {
        "train": _split(data=data, training="msrvtt/MSRVTT_train.9k.csv"),
        "val": _split(data=data),
        "test": _split(data="msrvtt/MSRVTT_data.json", test="msrvtt/MSRVTT_JSFUSION_test.csv"),
    }
    options = {"media": "clips/{video_id}.mp4"}
    return {"task": "retrieval", "reader": "msrvtt", "options": options, "splits": splits}


def _msrvtt_qa() -> Values:
    tests = [_split(rows=f"msrvtt_qa/{name}.jsonl") for name in ("test", "test_more")]
    splits = {name: _split(rows=f"msrvtt_qa/{name}.jsonl") for name in ("train", "val")}
    return {
        "task": "classification",
        "reader": "video_qa",
        "options": {"media": "clips/{name}.mp4"},
        "files": _files(answers="msrvtt_qa/train_ans2label.json"),
        "splits": splits | {"test": {"parts": tests}},
    }


def _multi30k() -> Values:
    splits = {}
    for name, stem in (("train", "train"), ("val", "val"), ("test", "test_2016")):
        roles = {"images": f"multi30k/image_splits/{stem}_images.txt"}
        for language, count in {"en": 5, "de": 5, "fr": 1, "cs": 1}.items():
            for number in range(1, count + 1):
                roles[f"{language}.{number}"] = f"multi30k/task2/raw/{stem}.{number}.{language}.gz"
        splits[name] = _split(**roles)
    return {"task": "retrieval", "reader": "multi30k", "options": {"media": "images/{image}"}, "splits": splits}


def _xgqa() -> Values:
    train = {"reader": "gqa_labels", "options": {"media": TRAIN_IMAGE % "img_id"}}
    tests = [
        _split(questions=f"gqa/testdev_balanced_questions_{one}.json")
        | {"options": {"media": TEST_IMAGE % "imageId", "language": one}}
        for one in QUESTION_LANGUAGES
    ]
    splits = {
        "train": _split(rows="gqa/train.json") | train,
        "val": _split(rows="gqa/valid.json") | train,
        "test": {"parts": tests},
    }
    return {
        "task": "vqa",
        "reader": "gqa",
        "options": {"media": TEST_IMAGE % "imageId"},
        "files": _files(answers="gqa/trainval_ans2label.json"),
        "splits": splits,
    }


def _xvnli() -> Values:
    train = {"options": {"media": TRAIN_IMAGE % "image"}}
    tests = [
        _split(rows=f"xvnli/test_{one}.jsonl") | {"options": {"media": TEST_IMAGE % "image", "language": one}}
        for one in ("en", *LANGUAGES)
    ]
    splits = {
        "train": _split(rows="xvnli/train_en.jsonl") | train,
        "val": _split(rows="xvnli/dev_en.jsonl") | train,
        "test": {"parts": tests},
    }
    return {"task": "classification", "reader": "xvnli", "splits": splits}


def _marvl() -> Values:
    tests = [
        _split(rows=f"marvl/marvl-{one}.jsonl") | {"options": {"media": "images/{image}", "language": one}}
        for one in PAIR_LANGUAGES
    ]
    splits = {name: split for name, split in _nlvr2_splits().items() if name != "test"}
    return {"task": "classification", "reader": "marvl", "splits": splits | {"test": {"parts": tests}}}


def _listed(reader: str, options: Values) -> Values:
    """A file a language for testing, English captions for training."""
    tests = [_split(rows=f"{reader}/test_{one}.jsonl") | {"options": {"language": one}} for one in ("en", *LANGUAGES)]
    train = {"files": FINETUNE, "reader": "karpathy", "options": KARPATHY}
    splits = {"train": train, "val": train, "test": {"parts": tests}}
    return {"task": "retrieval", "reader": reader, "options": options, "splits": splits}
