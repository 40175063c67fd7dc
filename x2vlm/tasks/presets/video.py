"""Presets of the tasks with clips (X2-VLM 4.4). Nothing of them is released: the paper gives frames and resolutions."""

from x2vlm.tasks.presets.image_text import CROP, RETRIEVAL
from x2vlm.tasks.presets.preset import Preset
from x2vlm.tasks.training.config import FinetuneConfig
from x2vlm.train.config import OptimizerConfig

SOURCE = "frames and resolution: X2-VLM 4.4"
# The script of video questions gives the new classifier its own rate, unlike most others.
VIDEO_QA = FinetuneConfig(
    epochs=10,
    batch_size=128,
    warmup=0.1,
    image_res=320,
    max_tokens=40,
    frames_per_clip=5,
    augment=CROP,
    optimizer=OptimizerConfig(lr=3e-5, lr_multiplier=2.0),
    world_size=8,
)
VIDEO_QA_ASSUMED = (
    "batch, epochs, warm-up and rates: X-VLM's of retrieval, with a batch of 128 and twice the rate for the classifier",
    "40 tokens",
)

VIDEO = (
    Preset(
        "msrvtt_retrieval",
        "retrieval",
        "frames, resolution and shortlist: X2-VLM 4.4",
        RETRIEVAL.model_copy(update={"batch_size": 128, "frames_per_clip": 5}),
        {"shortlist": 32},
        ("a batch of 128", "epochs, warm-up, rate and tokens: as for COCO", "the training list of 9,000 clips"),
    ),
    Preset("msrvtt_qa", "classification", SOURCE, VIDEO_QA, {}, VIDEO_QA_ASSUMED),
    Preset(
        "msvd_qa",
        "classification",
        SOURCE,
        VIDEO_QA.model_copy(update={"image_res": 224, "frames_per_clip": 8}),
        {},
        VIDEO_QA_ASSUMED,
    ),
)
