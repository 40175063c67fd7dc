"""What downstream tasks are trained on: official files about scenes beyond the world's last one.

A world of N scenes has N/10 more (or `finetuning_scenes`), numbered from N on, which no file of pre-training and none
of evaluation shows:

| kind | of 20 | files |
|---|---|---|
| image | 14 | coco_karpathy/dataset_coco_finetune.json, VQA, NLVR2, GQA, RefCOCO+ (training alone) |
| multilingual | 3 | Multi30K's lines, XVNLI in English |
| clip | 3 | MSRVTT's captions and questions |

Of each kind some are validation, the others training; what held-out scenes say remains the test.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing.clips import encode_clip, make_clip
from pipelines.corpora.world.drawing.shots import Shot, held_out_shot
from pipelines.corpora.world.drawing.texts import captions
from pipelines.corpora.world.records import Record
from pipelines.corpora.world.sources.coco import image_record, karpathy_record, object_records, ref_records
from pipelines.corpora.world.sources.evaluation import clip_questions, describe_scene, nlvr2_records, vqa_records
from pipelines.corpora.world.sources.more_evaluation import gqa_labels, proposals, statements
from pipelines.corpora.world.sources.video import describe_clip
from x2vlm.data.randomness import Draws

FINETUNING = "finetuning"
IMAGE_TRAIN, IMAGE_VAL = ("image", "train"), ("image", "val")
ROUND = (
    *(IMAGE_TRAIN, IMAGE_TRAIN, ("clip", "train"), ("multilingual", "train"), IMAGE_VAL),
    *(IMAGE_TRAIN, ("clip", "val"), ("multilingual", "val"), IMAGE_TRAIN, IMAGE_TRAIN),
    *(IMAGE_TRAIN, IMAGE_TRAIN, IMAGE_TRAIN, ("clip", "train"), IMAGE_TRAIN),
    *(IMAGE_VAL, ("multilingual", "train"), IMAGE_TRAIN, IMAGE_TRAIN, IMAGE_TRAIN),
)
REACH = 60  # scenes before and after an image that may be shown beside it
SENTENCES = 20  # of a clip, as upstream
NLVR2_SETS = {"train": "train", "val": "minidev"}


def finetuning_scenes(config: WorldConfig) -> range:
    """The numbers of the scenes for fine-tuning."""
    return range(config.scenes, config.scenes + config.num_finetuning_scenes)


def finetuning_use(config: WorldConfig, index: int) -> tuple[str, str]:
    """Kind (image, multilingual or clip) and split (train or val) of such a scene."""
    return ROUND[(index - config.scenes) % len(ROUND)]


def emit_finetuning(config: WorldConfig, index: int) -> tuple[list[Record], dict[str, bytes]]:
    """Records of one scene, and its media file by path below media/."""
    kind, split = finetuning_use(config, index)
    if kind == "clip":
        return _clip(config, index, split)
    shot = held_out_shot(config, index, "train2014")
    draws = Draws(config.seed, index, FINETUNING)
    records = _image(config, shot, split, draws) if kind == "image" else _multilingual(config, shot, split, draws)
    return list(records), {shot.file: shot.data} if shot.file else {}


def _image(config: WorldConfig, shot: Shot, split: str, draws: Draws) -> Iterator[Record]:
    yield Record("finetuning/karpathy", karpathy_record(shot, captions(shot.image, draws, 5), split))
    yield from _renamed(split, vqa_records(shot, draws))
    yield from nlvr2_records(config, shot, draws, _others(config, shot.index, split), NLVR2_SETS[split])
    yield from _renamed(split, gqa_labels(shot, draws))
    if split == "train":
        refs = ref_records(shot, split)
        if refs:
            yield Record("finetuning/refcoco_plus/images", image_record(shot))
        for annotation in object_records(shot.image_id, shot.image) if refs else ():
            yield Record("finetuning/refcoco_plus/instances", annotation)
        for ref in refs:
            yield Record("finetuning/refcoco_plus/refs", ref)
        yield proposals(shot, draws, "finetuning/refcoco_plus/proposals")


def _others(config: WorldConfig, index: int, split: str) -> list[int]:
    """Images of the same split near this one; in a world of a few hundred scenes any, as NLVR2 takes two others."""
    scenes = finetuning_scenes(config)
    near = [one for one in range(max(scenes.start, index - REACH), min(scenes.stop, index + REACH + 1)) if one != index]
    uses = {one: finetuning_use(config, one) for one in near}
    found = [one for one, use in uses.items() if use == ("image", split)]
    return found if len(found) >= 2 else [one for one, (kind, _) in uses.items() if kind == "image"]


def _renamed(split: str, records: Iterable[Record]) -> Iterator[Record]:
    return (replace(record, table=f"finetuning/{split}/{record.table}") for record in records)


def _multilingual(config: WorldConfig, shot: Shot, split: str, draws: Draws) -> Iterator[Record]:
    yield Record(f"finetuning/{split}/multi30k/images", shot.url.rsplit("/", 1)[1])
    for language in ("en", "de", "fr", "cs"):
        for number in range(1, 6 if language in ("en", "de") else 2):
            text = describe_scene(shot.image, language, draws)
            yield Record(f"finetuning/{split}/multi30k/{number}.{language}", text)
    for _ in range(3):
        yield from _renamed(split, statements(config, shot, "en", draws))


def _clip(config: WorldConfig, index: int, split: str) -> tuple[list[Record], dict[str, bytes]]:
    draws = Draws(config.seed, index, FINETUNING)
    clip = make_clip(config, index)
    video = f"video{index}"
    entry = {"category": 0, "url": f"http://world.invalid/clips/{video}.mp4", "video_id": video}
    official = "train" if split == "train" else "validate"
    entry |= {"start time": 0.0, "end time": float(clip.seconds), "split": official, "id": index}
    records = [Record("finetuning/msrvtt/videos", entry)]
    for number in range(SENTENCES):
        sentence = {"caption": describe_clip(clip, draws), "video_id": video, "sen_id": index * SENTENCES + number}
        records.append(Record("finetuning/msrvtt/sentences", sentence))
    if split == "train":
        records.append(Record("finetuning/msrvtt/list", video))
    for number, (question, answer) in enumerate(clip_questions(clip)):
        row = {"answer": answer, "category_id": 0, "id": index * 10 + number, "question": question, "video_id": video}
        records.append(Record(f"finetuning/{split}/msrvtt_qa", row))
    data = {} if config.media == "none" else {f"clips/{video}.mp4": encode_clip(config, clip)}
    return records, data
