"""The upstream files of a world, by their official names, and the tables they are made from."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from pipelines.corpora.world.chunks import Chunks
from pipelines.corpora.world.config import EVALUATION, WorldConfig
from pipelines.corpora.world.drawing.languages import LANGUAGES
from pipelines.corpora.world.formats import (
    Writer,
    distinct_lines,
    fixed_lines,
    json_columns,
    json_dict,
    json_lines,
    json_list,
    json_object,
    parquet,
    text_lines,
    zip_archive,
)
from pipelines.corpora.world.records import csv_line
from pipelines.corpora.world.sources.coco import CATEGORIES, INFO, LICENCES
from pipelines.corpora.world.sources.detection import (
    ATTRIBUTE_MIDS,
    BOX_HEADER,
    CLASS_MIDS,
    IMAGE_HEADER,
    LABEL_HEADER,
    OBJECTS365_CATEGORIES,
    RELATION_HEADER,
    RELATION_LABELS,
)
from pipelines.corpora.world.sources.evaluation import ATTRIBUTES
from pipelines.corpora.world.task_files import TASK_FILES


@dataclass(frozen=True)
class Upstream:
    """One upstream file. `role` is its role for a reader, "" for files that no reader takes."""

    source: str
    name: str
    write: Writer
    role: str = ""

    @property
    def path(self) -> str:
        """Below the world's folder."""
        return f"{self.source}/{self.name}" if self.source == EVALUATION else f"annotations/{self.source}/{self.name}"


LAION = [
    ("SAMPLE_ID", pa.int64()),
    ("URL", pa.string()),
    ("TEXT", pa.string()),
    ("HEIGHT", pa.int32()),
    ("WIDTH", pa.int32()),
    ("LICENSE", pa.string()),
    ("NSFW", pa.string()),
    ("similarity", pa.float64()),
]
LAION_MULTI = [  # sizes are floats in this release
    *((name, pa.float64() if name in ("HEIGHT", "WIDTH") else kind) for name, kind in LAION),
    ("LANGUAGE", pa.string()),
    ("md5", pa.string()),
]


def _coco(images: str, **lists: str) -> Writer:
    """A file in COCO's layout; instance files have categories."""
    fixed = {"info": INFO, "licenses": LICENCES}
    if lists["annotations"].endswith("instances"):
        fixed["categories"] = CATEGORIES
    return json_object({"images": images, **lists}, **fixed)


def _names(mids: dict[str, str]) -> Writer:
    return fixed_lines(["LabelName,DisplayName", *(csv_line((mid, name.capitalize())) for name, mid in mids.items())])


def _triplet(line: str) -> str:
    columns = line.split(",")
    return ",".join((columns[1], columns[2], columns[-1]))


TRAINING = (
    Upstream("coco", "captions_train2017.json", _coco("coco/images", annotations="coco/captions"), "captions"),
    Upstream("coco", "instances_train2017.json", _coco("coco/images", annotations="coco/instances"), "instances"),
    Upstream("visual_genome", "image_data.json", json_list("visual_genome/image_data"), "images"),
    Upstream("visual_genome", "region_descriptions.json", json_list("visual_genome/region_descriptions"), "regions"),
    Upstream("visual_genome", "objects.json", json_list("visual_genome/objects")),
    Upstream("visual_genome", "attributes.json", json_list("visual_genome/attributes"), "attributes"),
    Upstream("visual_genome", "relationships.json", json_list("visual_genome/relationships")),
    Upstream("visual_genome", "question_answers.json", json_list("visual_genome/question_answers")),
    Upstream("sbu", "sbu-captions-all.json", json_columns("sbu/rows", ("image_urls", "captions", "user_ids")), "rows"),
    Upstream("cc3m", "Train_GCC-training.tsv", text_lines("cc3m/rows"), "rows"),
    Upstream("cc12m", "cc12m.tsv", text_lines("cc12m/rows"), "rows"),
    Upstream("cc12m", "cc_hashes/cc12m.tsv.gz", text_lines("cc12m/hashes"), "hashes"),
    Upstream("laion_en", "part-00000.parquet", parquet("laion_en/rows", pa.schema(LAION)), "rows"),
    Upstream("laion_multi", "part-00000.parquet", parquet("laion_multi/rows", pa.schema(LAION_MULTI)), "rows"),
    Upstream(
        "objects365",
        "zhiyuan_objv2_train.json",
        json_object(
            {"images": "objects365/images", "annotations": "objects365/annotations"},
            licenses=LICENCES,
            categories=OBJECTS365_CATEGORIES,
        ),
        "instances",
    ),
    Upstream(
        "openimages",
        "train-images-boxable-with-rotation.csv",
        text_lines("openimages/images", IMAGE_HEADER),
        "images",
    ),
    Upstream("openimages", "oidv6-class-descriptions.csv", _names(CLASS_MIDS), "classes"),
    Upstream("openimages", "oidv6-class-descriptions-boxable.csv", _names(CLASS_MIDS)),
    Upstream("openimages", "oidv6-attributes-description.csv", _names(ATTRIBUTE_MIDS), "attributes"),
    Upstream(
        "openimages",
        "oidv6-relationships-description.csv",
        fixed_lines([f"{label},{label}" for label in ("is", *RELATION_LABELS.values())]),
    ),
    Upstream(
        "openimages",
        "oidv6-relationship-triplets.csv",
        distinct_lines("openimages/relations", _triplet, "LabelName1,LabelName2,RelationshipLabel"),
    ),
    Upstream("openimages", "oidv6-train-annotations-bbox.csv", text_lines("openimages/boxes", BOX_HEADER), "boxes"),
    Upstream(
        "openimages",
        "oidv6-train-annotations-vrd.csv",
        text_lines("openimages/relations", RELATION_HEADER),
        "relations",
    ),
    Upstream(
        "openimages",
        "train-annotations-human-imagelabels-boxable.csv",
        text_lines("openimages/labels", LABEL_HEADER),
    ),
    Upstream("flickr_entities", "annotations.zip", zip_archive("flickr_entities/entities"), "entities"),
    Upstream("flickr_entities", "results_20130124.token", text_lines("flickr_entities/tokens"), "tokens"),
    Upstream("flickr_entities", "image_urls.tsv", text_lines("flickr_entities/urls"), "urls"),
    Upstream(
        "webvid",
        "results_2M_train.csv",
        text_lines("webvid/rows", '"videoid","name","page_idx","page_dir","duration","contentUrl"'),
        "rows",
    ),
    Upstream(
        "howto100m",
        "HowTo100M_v1.csv",
        text_lines("howto100m/videos", "video_id,category_1,category_2,rank,task_id"),
        "videos",
    ),
    Upstream("howto100m", "video_urls.tsv", text_lines("howto100m/urls"), "urls"),
    Upstream("howto100m", "task_ids.csv", fixed_lines([f"{task}\tMove shapes, lesson {task}" for task in range(23)])),
    Upstream("howto100m", "raw_caption.json", json_dict("howto100m/raw_captions"), "raw_captions"),
    Upstream("howto100m", "caption.json", json_dict("howto100m/captions")),
    Upstream("refcoco", "refs.json", json_list("refcoco/refs"), "refs"),
    Upstream("refcoco", "instances.json", _coco("refcoco/images", annotations="refcoco/instances"), "instances"),
    Upstream("gqa", "train_sceneGraphs.json", json_dict("gqa/scene_graphs"), "scene_graphs"),
    Upstream("gqa", "image_urls.tsv", text_lines("gqa/urls"), "urls"),
    Upstream("gqa", "train_balanced_questions.json", json_dict("gqa/questions")),
)
VQA = {
    "info": {"description": "Procedural world in the format of VQA v2", "version": "2.0", "year": 2017},
    "task_type": "Open-Ended",
    "data_type": "mscoco",
    "license": {"url": LICENCES[0]["url"], "name": LICENCES[0]["name"]},
    "data_subtype": "val2014",
}
HELD_OUT = (
    ("coco_karpathy/dataset_coco.json", json_object({"images": "karpathy/images"}, dataset="coco")),
    (
        "coco_caption/captions_val2014.json",
        _coco("coco_caption/images", annotations="coco_caption/annotations"),
    ),
    ("vqa/v2_OpenEnded_mscoco_val2014_questions.json", json_object({"questions": "vqa/questions"}, **VQA)),
    ("vqa/v2_mscoco_val2014_annotations.json", json_object({"annotations": "vqa/annotations"}, **VQA)),
    ("nlvr2/dev.json", json_lines("nlvr2/dev")),
    ("refcoco_plus/refs(unc).json", json_list("refcoco_plus/refs")),
    ("refcoco_plus/instances.json", _coco("refcoco_plus/images", annotations="refcoco_plus/instances")),
    ("winoground/examples.jsonl", json_lines("winoground/examples")),
    (
        "ovad/ovad2000.json",
        json_object(
            {"images": "ovad/images", "annotations": "ovad/annotations"},
            info=INFO,
            licenses=LICENCES,
            categories=[{"isthing": 1, "ov_set": "novel", **category} for category in CATEGORIES],
            attributes=ATTRIBUTES,
        ),
    ),
    ("msrvtt/MSRVTT_JSFUSION_test.csv", text_lines("msrvtt/test", "key,vid_key,video_id,sentence")),
    ("msrvtt/MSRVTT_data.json", json_object({"videos": "msrvtt/videos", "sentences": "msrvtt/sentences"})),
    ("msrvtt_qa/test.jsonl", json_lines("msrvtt_qa/test")),
    ("multi30k/image_splits/test_2016_images.txt", text_lines("multi30k/images")),
    *(
        (f"multi30k/task2/raw/test_2016.{number}.{language}.gz", text_lines(f"multi30k/{number}.{language}"))
        for language, count in {"en": 5, "de": 5, "fr": 1, "cs": 1}.items()
        for number in range(1, count + 1)
    ),
    *((f"wit/test_{language}.jsonl", json_lines(f"wit/{language}")) for language in ("en", *LANGUAGES)),
    *((f"xflickrco/test_{language}.jsonl", json_lines(f"xflickrco/{language}")) for language in ("en", *LANGUAGES)),
)
YTTEMPORAL_URLS = Upstream("yttemporal", "video_urls.tsv", text_lines("yttemporal_urls"), "urls")
SHARD = "yttemporal180m_{shard}of100.jsonl.gz"


def upstream_files(config: WorldConfig, chunks: Chunks) -> Iterator[Upstream]:
    """Every file of the sources that the world has, and of all evaluation tasks."""
    yield from (file for file in TRAINING if file.source in config.sources)
    if "yttemporal" in config.sources:
        yield YTTEMPORAL_URLS
    # One upstream file in a hundred parts; parts without a video are left out.
    for table in chunks.tables():
        if table.startswith("yttemporal/"):
            shard = table.removeprefix("yttemporal/")
            yield Upstream("yttemporal", SHARD.format(shard=shard), json_lines(table), f"rows-{shard}")
    for name, write in (*HELD_OUT, *TASK_FILES.items()):
        yield Upstream(EVALUATION, name, write)
