"""The files that fine-tuning and the evaluation of further tasks read, beside those of `files.HELD_OUT`."""

import json

from pipelines.corpora.world.drawing.languages import LANGUAGES
from pipelines.corpora.world.drawing.questions import PAIR_LANGUAGES, QUESTION_LANGUAGES
from pipelines.corpora.world.drawing.words import COLOURS, SHAPES
from pipelines.corpora.world.formats import (
    Writer,
    fixed_lines,
    json_dict,
    json_lines,
    json_list,
    json_object,
    text_lines,
)
from pipelines.corpora.world.sources.coco import CATEGORIES, INFO, LICENCES

NUMBERS = tuple(str(number) for number in range(1, 13))
VERBS = ("approach", "leave", "pass", "follow", "circle")
ANSWERS = ("yes", "no", *NUMBERS, *COLOURS)  # of questions about images
CLIP_ANSWERS = tuple(dict.fromkeys((*ANSWERS, *SHAPES, *VERBS)))  # a circle is both


def _vqa(key: str, split: str, subtype: str) -> Writer:
    fixed = {
        "info": {"description": "Procedural world in the format of VQA v2", "version": "2.0", "year": 2017},
        "task_type": "Open-Ended",
        "data_type": "mscoco",
        "license": {"url": LICENCES[0]["url"], "name": LICENCES[0]["name"]},
        "data_subtype": subtype,
    }
    return json_object({key: f"finetuning/{split}/vqa/{key}"}, **fixed)


def _ans2label(answers: tuple[str, ...]) -> Writer:
    return fixed_lines([json.dumps({answer: number for number, answer in enumerate(answers)})])


def _multi30k() -> dict[str, Writer]:
    files = {}
    for split in ("train", "val"):
        table = f"finetuning/{split}/multi30k"
        files[f"multi30k/image_splits/{split}_images.txt"] = text_lines(f"{table}/images")
        for language, count in {"en": 5, "de": 5, "fr": 1, "cs": 1}.items():
            for number in range(1, count + 1):
                name = f"multi30k/task2/raw/{split}.{number}.{language}.gz"
                files[name] = text_lines(f"{table}/{number}.{language}")
    return files


TASK_FILES: dict[str, Writer] = {
    "coco_karpathy/dataset_coco_finetune.json": json_object({"images": "finetuning/karpathy"}, dataset="coco"),
    "vqa/v2_OpenEnded_mscoco_train2014_questions.json": _vqa("questions", "train", "train2014"),
    "vqa/v2_mscoco_train2014_annotations.json": _vqa("annotations", "train", "train2014"),
    "vqa/v2_OpenEnded_mscoco_minival2014_questions.json": _vqa("questions", "val", "minival2014"),
    "vqa/v2_mscoco_minival2014_annotations.json": _vqa("annotations", "val", "minival2014"),
    "vqa/answer_list.json": fixed_lines([json.dumps(ANSWERS)]),
    "nlvr2/train.json": json_lines("nlvr2/train"),
    "nlvr2/minidev.json": json_lines("nlvr2/minidev"),
    "refcoco_plus/train_refs.json": json_list("finetuning/refcoco_plus/refs"),
    "refcoco_plus/train_instances.json": json_object(
        {"images": "finetuning/refcoco_plus/images", "annotations": "finetuning/refcoco_plus/instances"},
        info=INFO,
        licenses=LICENCES,
        categories=CATEGORIES,
    ),
    "refcoco_plus/train_dets.json": json_dict("finetuning/refcoco_plus/proposals"),
    "refcoco_plus/dets.json": json_dict("refcoco_plus/proposals"),
    "gqa/train.json": json_list("finetuning/train/gqa"),
    "gqa/valid.json": json_list("finetuning/val/gqa"),
    "gqa/trainval_ans2label.json": _ans2label(ANSWERS),
    **{f"gqa/testdev_balanced_questions_{one}.json": json_dict(f"gqa/{one}") for one in QUESTION_LANGUAGES},
    **{f"marvl/marvl-{one}.jsonl": json_lines(f"marvl/{one}") for one in PAIR_LANGUAGES},
    "xvnli/train_en.jsonl": json_lines("finetuning/train/xvnli/en"),
    "xvnli/dev_en.jsonl": json_lines("finetuning/val/xvnli/en"),
    **{f"xvnli/test_{one}.jsonl": json_lines(f"xvnli/{one}") for one in ("en", *LANGUAGES)},
    "msrvtt/train_val_videodatainfo.json": json_object(
        {"videos": "finetuning/msrvtt/videos", "sentences": "finetuning/msrvtt/sentences"}
    ),
    "msrvtt/MSRVTT_train.9k.csv": text_lines("finetuning/msrvtt/list", "video_id"),
    "msrvtt_qa/train.jsonl": json_lines("finetuning/train/msrvtt_qa"),
    "msrvtt_qa/val.jsonl": json_lines("finetuning/val/msrvtt_qa"),
    "msrvtt_qa/test_more.jsonl": json_lines("msrvtt_qa/test_more"),
    "msrvtt_qa/train_ans2label.json": _ans2label(CLIP_ANSWERS),
    **_multi30k(),
}
