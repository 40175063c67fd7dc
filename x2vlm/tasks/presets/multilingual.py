"""Presets of the multilingual tasks (X2-VLM 4.5). X2-VLM's own are not released: these are CCLM's, by its authors."""

from x2vlm.tasks.presets.image_text import CROP, X_VLM_RATES
from x2vlm.tasks.presets.preset import Preset
from x2vlm.tasks.training.config import FinetuneConfig
from x2vlm.train.config import OptimizerConfig

SOURCE = "CCLM's released configuration"
TUNING = FinetuneConfig(
    epochs=10,
    batch_size=128,
    warmup=0.1,
    image_res=384,
    max_tokens=40,
    optimizer=X_VLM_RATES,
    augment=CROP,
    world_size=8,
)
TRANSFER = "that X2-VLM took CCLM's settings"
LONG = {"max_tokens": 80}
XGQA = TUNING.model_copy(
    update={
        "epochs": 5,
        "batch_size": 256,
        "select_from_epoch": 2,
        "optimizer": OptimizerConfig(lr=3e-5, lr_multiplier=2.0),
    }
)

MULTILINGUAL = (
    Preset("multi30k", "retrieval", SOURCE, TUNING, {"shortlist": 128}, (TRANSFER, "40 tokens")),
    Preset("coco_multilingual", "retrieval", SOURCE, TUNING, {"shortlist": 256}, (TRANSFER, "40 tokens")),
    Preset(
        "xgqa",
        "vqa",
        SOURCE,
        XGQA,
        {"shortlist": 128},
        (
            TRANSFER,
            "40 tokens",
            "a batch of 256: 32 on each GPU is released, their number is not",
            "twice the rate for the decoder",
        ),
    ),
    Preset(
        "xgqa_few_shot",
        "vqa",
        SOURCE,
        XGQA.model_copy(update={"epochs": 60, "optimizer": OptimizerConfig(lr=1e-5, lr_multiplier=2.0)}),
        {"shortlist": 128},
        (TRANSFER, "a rate of 1e-5: both 1e-5 and 1e-6 are released", "batch and tokens: as for xgqa"),
    ),
    Preset("xvnli", "classification", SOURCE, TUNING.model_copy(update=LONG), {}, (TRANSFER,)),
    Preset(
        "marvl",
        "classification",
        SOURCE,
        TUNING,
        {"num_images": 2},
        (TRANSFER, "40 tokens", "no further pre-training on NLVR2, which CCLM does for 2 epochs"),
    ),
    Preset(
        "xflickrco",
        "retrieval",
        SOURCE,
        TUNING.model_copy(update={"batch_size": 64, "select_from_epoch": 7, **LONG}),
        {"shortlist": 128},
        (TRANSFER, "a batch of 64: 8 on each GPU is released, their number is not"),
    ),
    Preset(
        "wit",
        "retrieval",
        SOURCE,
        TUNING.model_copy(update={"epochs": 5, "batch_size": 64, "select_from_epoch": 3, **LONG}),
        {"shortlist": 128},
        (TRANSFER, "a batch of 64: 8 on each GPU is released, their number is not"),
    ),
)
