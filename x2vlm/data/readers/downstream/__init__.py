"""Readers of the official files of downstream tasks, and of a user's own tables: `read_task`.

    from x2vlm.data.readers.downstream import read_task

    files = {"questions": Path("v2_OpenEnded_mscoco_val2014_questions.json"), "annotations": Path("v2_mscoco_...json")}
    data = read_task("vqa", files, "val", {"media": "val2014/COCO_val2014_{image_id:012d}.jpg"})

| reader | files | roles |
|---|---|---|
| `karpathy` | dataset_coco.json, dataset_flickr30k.json | `annotations` |
| `coco_captions` | captions_val2014.json, `*_gt.json` | `annotations` |
| `caption_list` | `{image, caption or captions, image_id}` of the released models | `rows`, optionally `references` |
| `vqa` | VQA's questions and annotations | `questions`, `annotations`, optionally `answers` |
| `vg_qa` | Visual Genome's question_answers.json | `rows`, optionally `images` (image_data.json), `answers` |
| `vqa_list` | `{question_id, image, question, answer, dataset}` | `rows`, optionally `answers` |
| `gqa` | GQA and xGQA: {question id: {imageId, question, answer}} | `questions`, optionally `answers` |
| `gqa_labels` | `{img_id, sent, label: {answer: score}, question_id}` | `rows`, optionally `answers` |
| `nlvr2` | dev.json, test1.json, train.json: JSON lines | `rows` |
| `marvl` | marvl-<language>.jsonl | `rows` |
| `image_pair_list` | `{images, sentence, label}` | `rows` |
| `xvnli` | XVNLI and SNLI-VE: JSON lines | `rows` |
| `refcoco` | refs(unc).p or the same as JSON, instances.json | `refs`, `instances`, or `proposals` (dets.json) too |
| `refcoco_list` | `{image, text, ref_id}` | `rows`; `refs` and `instances`, or boxes in the rows; `proposals` |
| `winoground` | examples.jsonl | `rows`, optionally `tags` (lists of tags by example) |
| `ovad` | ovad2000.json | `annotations` |
| `msrvtt` | MSRVTT_data.json | `data`, `test` (MSRVTT_JSFUSION_test.csv), optionally `training` (a list of clips) |
| `video_qa` | MSRVTT-QA and MSVD-QA | `rows`, `answers` (ans2label), optionally `names` (youtube_mapping.txt) |
| `multi30k` | task1 and task2 raw lines | `images`, `<language>.1`, `<language>.2` ... |
| `caption_files` | {language: file} of `caption_list`, `coco_captions` or `karpathy` form | one role a language |
| `wit` | IGLUE's test_<language>.jsonl | `rows` |
| `xflickrco` | IGLUE's test.jsonl of a language | `rows` |
| `own_captions`, `own_boxes`, `own_questions`, `own_labels` | CSV, TSV, JSON lines or Parquet | `rows` |

Nothing is imported for a reader before it is used.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x2vlm.config import FrozenConfig, did_you_mean, parse_config
from x2vlm.data.readers.downstream import options
from x2vlm.data.readers.downstream.reading import Reading
from x2vlm.data.readers.source import Source
from x2vlm.data.task_examples import TaskData
from x2vlm.errors import ConfigError


@dataclass(frozen=True)
class TaskReader:
    """A format. `roles`: the files it must have; `optional`: those it may have, "*" for any."""

    implementation: str  # "<module>:<function>" below this package; (Reading, options) -> TaskData
    options: type[FrozenConfig]
    roles: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def load(self) -> Callable[..., TaskData]:
        """The function that reads."""
        module, _, name = self.implementation.partition(":")
        found: Callable[..., TaskData] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        return found


TASK_READERS: dict[str, TaskReader] = {
    "karpathy": TaskReader("captions:read_karpathy", options.KarpathyOptions, ("annotations",)),
    "coco_captions": TaskReader("captions:read_coco_captions", options.CocoCaptionsOptions, ("annotations",)),
    "caption_list": TaskReader("captions:read_caption_list", options.CaptionListOptions, ("rows",), ("references",)),
    "vqa": TaskReader("questions:read_vqa", options.VqaOptions, ("questions",), ("annotations", "answers")),
    "vg_qa": TaskReader("questions:read_vg_qa", options.VgQaOptions, ("rows",), ("images", "answers")),
    "vqa_list": TaskReader("questions:read_vqa_list", options.VqaListOptions, ("rows",), ("answers",)),
    "gqa": TaskReader("gqa:read_gqa_questions", options.GqaOptions, ("questions",), ("answers",)),
    "gqa_labels": TaskReader("gqa:read_gqa_labels", options.GqaLabelsOptions, ("rows",), ("answers",)),
    "nlvr2": TaskReader("pairs:read_nlvr2", options.Nlvr2Options, ("rows",)),
    "marvl": TaskReader("pairs:read_marvl", options.MarvlOptions, ("rows",)),
    "image_pair_list": TaskReader("pairs:read_image_pair_list", options.ImagePairListOptions, ("rows",)),
    "xvnli": TaskReader("pairs:read_xvnli", options.XvnliOptions, ("rows",)),
    "refcoco": TaskReader("referring:read_refcoco", options.RefcocoOptions, ("refs", "instances"), ("proposals",)),
    "refcoco_list": TaskReader(
        "referring:read_refcoco_list", options.RefcocoListOptions, ("rows",), ("refs", "instances", "proposals")
    ),
    "winoground": TaskReader("zero_shot:read_winoground", options.WinogroundOptions, ("rows",), ("tags",)),
    "ovad": TaskReader("zero_shot:read_ovad", options.OvadOptions, ("annotations",)),
    "msrvtt": TaskReader("videos:read_msrvtt", options.MsrvttOptions, ("data",), ("test", "training")),
    "video_qa": TaskReader("videos:read_video_qa", options.VideoQaOptions, ("rows", "answers"), ("names",)),
    "multi30k": TaskReader("multilingual:read_multi30k", options.Multi30kOptions, ("images",), ("*",)),
    "caption_files": TaskReader("multilingual:read_caption_files", options.CaptionFilesOptions, (), ("*",)),
    "wit": TaskReader("multilingual:read_wit", options.WitOptions, ("rows",)),
    "xflickrco": TaskReader("multilingual:read_xflickrco", options.XFlickrCoOptions, ("rows",)),
    "own_captions": TaskReader("own:read_own_captions", options.OwnOptions, ("rows",)),
    "own_boxes": TaskReader("own:read_own_boxes", options.OwnOptions, ("rows",)),
    "own_questions": TaskReader("own:read_own_questions", options.OwnOptions, ("rows",), ("answers",)),
    "own_labels": TaskReader("own:read_own_labels", options.OwnOptions, ("rows",), ("answers",)),
}


def task_reader(name: str) -> TaskReader:
    """The reader of that name; ValueError, with the nearest known name, if there is none."""
    if name not in TASK_READERS:
        raise ValueError(f"no reader of a downstream format is called `{name}`; {did_you_mean(name, TASK_READERS)}")
    return TASK_READERS[name]


def check_roles(name: str, roles: Mapping[str, object]) -> None:
    """ValueError if a reader lacks a file that it must have, or gets one that it does not know."""
    reader = task_reader(name)
    known = (*reader.roles, *reader.optional)
    if missing := [role for role in reader.roles if role not in roles]:
        raise ValueError(f"reader `{name}` needs a file for {', '.join(missing)}; it has {', '.join(roles) or 'none'}")
    if not roles:
        raise ValueError(f"reader `{name}` has no file")
    if unknown := [role for role in roles if role not in known and "*" not in known]:
        raise ValueError(f"reader `{name}` takes no file `{unknown[0]}`; {did_you_mean(unknown[0], known)}")


def read_task(
    reader: str,
    files: Mapping[str, Path],
    split: str,
    options: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    source: str | None = None,
) -> TaskData:
    """The examples of one split of a task in the order of the official files, with labels and drops.

    `files`: role -> file (see the table of this module). `split`: train, val, test, or the official name. `options`:
    of the reader, see `options`. `name` stands in messages, `source` in the keys of drops; both are by default the
    reader's. Nothing is checked about media. Raises ConfigError for a reader, role or option that does not exist,
    SourceUnavailable for a file that is missing, damaged, of another split or of another format.
    """
    origin = name or reader
    try:
        found = task_reader(reader)
        check_roles(reader, files)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    chosen = parse_config(found.options, dict(options or {}), f"{origin}: options of reader `{reader}`")
    reading = Reading(Source(origin, source or reader, split, files), split, getattr(chosen, "language", "en"))
    return found.load()(reading, chosen)


__all__ = ["TASK_READERS", "TaskReader", "check_roles", "read_task", "task_reader"]
