"""Presets of the tasks with images and English texts (X2-VLM 4.3, and what is left of X-VLM's recipes there)."""

from x2vlm.data.loading.config import AugmentConfig
from x2vlm.tasks.presets.preset import Preset
from x2vlm.tasks.training.config import FinetuneConfig
from x2vlm.train.config import OptimizerConfig

CROP = AugmentConfig(min_area=0.5)  # every released fine-tuning; RandAugment as in pre-training
# The released scripts of these tasks hide the list of new parameters from the optimizer, which so has one rate.
ONE_RATE = 1.0
X_VLM_RATES = OptimizerConfig(lr=3e-5, lr_multiplier=ONE_RATE)

RETRIEVAL = FinetuneConfig(
    epochs=10,
    batch_size=1024,
    warmup=0.1,
    image_res=384,
    max_tokens=40,
    optimizer=X_VLM_RATES,
    augment=CROP,
    world_size=8,
)
RETRIEVAL_SOURCE = "batch, resolution and shortlist: X2-VLM 4.3.1; the rest: X-VLM's released configuration"
RETRIEVAL_ASSUMED = (
    "the learning rate, which X-VLM gives for a batch of 160 (20 on each of 8 GPUs)",
    "8 processes",
)

VQA_BASE = FinetuneConfig(
    epochs=5,
    batch_size=128,
    warmup=0.1,
    image_res=768,
    max_tokens=40,
    augment=CROP,
    select_from_epoch=2,
    optimizer=OptimizerConfig(lr=4e-5, lr_multiplier=2.0, vision_lr=2e-5, text_lr=4e-5),
    world_size=8,
)
VQA_LARGE = VQA_BASE.model_copy(
    update={
        "warmup": 0.05,
        "accumulate": 4,  # chunks of 4 questions; released: 2 on each of 32 GPUs, twice
        "optimizer": OptimizerConfig(lr=4e-5, lr_multiplier=2.0, vision_lr=2e-5, text_lr=2e-5),
    }
)
VQA_OPTIONS = {"shortlist": 128}

CAPTIONING_LARGE = FinetuneConfig(
    epochs=5,
    batch_size=128,
    warmup=0.05,
    image_res=384,
    max_tokens=40,
    augment=CROP,
    optimizer=OptimizerConfig(lr=5e-6, lr_multiplier=2.0, vision_lr=1e-5, text_lr=5e-6),
    world_size=8,
)
CAPTIONING_ASSUMED = (
    "a batch of 128: 16 on each GPU is released, and their number is said to be 8 or 16",
    "twice the rate for new parameters, of which captioning has none",
)

GROUNDING_LARGE = FinetuneConfig(
    epochs=10,
    batch_size=160,
    warmup=0.1,
    image_res=384,
    max_tokens=40,
    drop_path=0.1,
    augment=CROP,
    optimizer=OptimizerConfig(lr=1e-5, lr_multiplier=ONE_RATE),
    world_size=8,
)
GROUNDING_ASSUMED = ("a batch of 160: 20 on each GPU is released, their number is not",)
RELEASED_IOU = {"unambiguous": False, "iou": "inclusive", "clip_boxes": False}

IMAGE_TEXT = (
    Preset(
        "coco_retrieval",
        "retrieval",
        RETRIEVAL_SOURCE,
        RETRIEVAL,
        {"shortlist": 256},
        RETRIEVAL_ASSUMED,
    ),
    Preset(
        "flickr30k_retrieval",
        "retrieval",
        RETRIEVAL_SOURCE,
        RETRIEVAL,
        {"shortlist": 128},
        (*RETRIEVAL_ASSUMED, "starts from the pre-trained model, as X-VLM does, and not from one tuned on COCO"),
    ),
    Preset(
        "vqa2_base",
        "vqa",
        "released configuration vqa2_base",
        VQA_BASE,
        VQA_OPTIONS,
        ("8 processes of 16 questions; released: 16 of 8",),
    ),
    Preset(
        "vqa2_large",
        "vqa",
        "released configuration vqa2_large",
        VQA_LARGE,
        VQA_OPTIONS,
        ("8 processes of 16 questions in 4 chunks; released: 32 of 2, twice",),
    ),
    Preset(
        "nlvr2",
        "classification",
        "resolution: X2-VLM 4.3.3; the rest: X-VLM's released configuration",
        FinetuneConfig(
            epochs=10,
            batch_size=80,
            warmup=0.1,
            image_res=384,
            max_tokens=40,
            optimizer=X_VLM_RATES,
            augment=CROP,
            world_size=8,
            reference_splits=("val", "test"),
        ),
        {"num_images": 2},
        ("that X2-VLM took X-VLM's batch, rate and epochs", "40 tokens, as in the configurations that are released"),
    ),
    Preset(
        "refcoco_plus_large",
        "grounding",
        "released configuration refcoco_grounding_large",
        GROUNDING_LARGE,
        RELEASED_IOU,
        GROUNDING_ASSUMED,
    ),
    Preset(
        "refcoco_plus_base",
        "grounding",
        "released configuration refcoco_grounding_large, which is for large",
        GROUNDING_LARGE,
        RELEASED_IOU,
        (*GROUNDING_ASSUMED, "everything: no configuration for base is released"),
    ),
    Preset(
        "refcoco_plus_weak",
        "weak_grounding",
        "X-VLM's released configuration; X2-VLM does not report it",
        FinetuneConfig(
            epochs=5,
            batch_size=160,
            warmup=0.1,
            image_res=384,
            max_tokens=40,
            augment=CROP,
            optimizer=OptimizerConfig(lr=2e-5, lr_multiplier=ONE_RATE),
            world_size=8,
        ),
        {},
        ("a warm-up of 0.1", "8 processes of 20"),
    ),
    Preset(
        "coco_captioning_large",
        "captioning",
        "released configuration coco_captioning_large",
        CAPTIONING_LARGE,
        {},
        CAPTIONING_ASSUMED,
    ),
    Preset(
        "coco_captioning_paper",
        "captioning",
        "resolution: X2-VLM 4.3.5; the rest: coco_captioning_large as released",
        CAPTIONING_LARGE.model_copy(update={"image_res": 480}),
        {},
        CAPTIONING_ASSUMED,
    ),
    Preset(
        "coco_captioning_base",
        "captioning",
        "released configuration coco_captioning_large, which is for large",
        CAPTIONING_LARGE,
        {},
        (*CAPTIONING_ASSUMED, "everything: no configuration for base is released"),
    ),
    Preset(
        "coco_captioning_scst",
        "captioning",
        "X-VLM's self-critical training of its own decoder",
        FinetuneConfig(
            epochs=5,
            batch_size=64,
            warmup=0.0,
            image_res=384,
            max_tokens=40,
            augment=CROP,
            optimizer=OptimizerConfig(lr=1e-5, lr_multiplier=ONE_RATE),
            world_size=8,
        ),
        {"mode": "scst"},
        (
            "everything, for this model: X2-VLM reports none, and X-VLM has another decoder",
            "a batch of 64, 8 on each of 8 GPUs; 44,275 steps are released, which are 5 epochs of 8,855",
            "no warm-up",
        ),
    ),
    Preset(
        "winoground",
        "winoground",
        "X2-VLM 4.3.6: as pre-trained",
        None,
        {},
        ("the score of a pair is that of matching; the paper does not say",),
    ),
    Preset(
        "ovad",
        "attributes",
        "X2-VLM 4.3.7: as pre-trained, boxes given",
        None,
        {},
        ("prompts and synonyms as in the benchmark's own run of X-VLM",),
    ),
)
