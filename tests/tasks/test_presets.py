"""Presets against the table of settings that the paper and the released files give."""

import subprocess
import sys
from pathlib import Path

import pytest

from x2vlm.data.loading.config import AugmentConfig
from x2vlm.errors import ConfigError
from x2vlm.tasks.catalog import TASKS, task_spec
from x2vlm.tasks.presets import PRESETS, Preset, preset
from x2vlm.tasks.training.config import FinetuneConfig

# name: resolution, batch over all processes, epochs, warm-up, learning rate, tokens; typed off the table of settings.
SETTINGS = {
    "vqa2_base": (768, 128, 5, 0.1, 4e-5, 40),
    "vqa2_large": (768, 128, 5, 0.05, 4e-5, 40),
    "coco_captioning_large": (384, 128, 5, 0.05, 5e-6, 40),
    "coco_captioning_paper": (480, 128, 5, 0.05, 5e-6, 40),
    "coco_captioning_scst": (384, 64, 5, 0.0, 1e-5, 40),
    "refcoco_plus_large": (384, 160, 10, 0.1, 1e-5, 40),
    "refcoco_plus_weak": (384, 160, 5, 0.1, 2e-5, 40),
    "coco_retrieval": (384, 1024, 10, 0.1, 3e-5, 40),
    "flickr30k_retrieval": (384, 1024, 10, 0.1, 3e-5, 40),
    "msrvtt_retrieval": (384, 128, 10, 0.1, 3e-5, 40),
    "msrvtt_qa": (320, 128, 10, 0.1, 3e-5, 40),
    "msvd_qa": (224, 128, 10, 0.1, 3e-5, 40),
    "nlvr2": (384, 80, 10, 0.1, 3e-5, 40),
    "multi30k": (384, 128, 10, 0.1, 3e-5, 40),
    "coco_multilingual": (384, 128, 10, 0.1, 3e-5, 40),
    "xgqa": (384, 256, 5, 0.1, 3e-5, 40),
    "xgqa_few_shot": (384, 256, 60, 0.1, 1e-5, 40),
    "xvnli": (384, 128, 10, 0.1, 3e-5, 80),
    "marvl": (384, 128, 10, 0.1, 3e-5, 40),
    "xflickrco": (384, 64, 10, 0.1, 3e-5, 80),
    "wit": (384, 64, 5, 0.1, 3e-5, 80),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_values_are_those_of_the_table(name: str) -> None:
    tuning = preset(name).finetune
    assert tuning is not None
    found = (tuning.image_res, tuning.batch_size, tuning.epochs, tuning.warmup, tuning.optimizer.lr, tuning.max_tokens)
    assert found == SETTINGS[name]


def test_rates_of_the_towers_and_other_values_of_single_recipes() -> None:
    rates = {
        name: (tuning.optimizer.vision_lr, tuning.optimizer.text_lr, tuning.optimizer.lr_multiplier)
        for name in ("vqa2_base", "vqa2_large", "coco_captioning_large")
        for tuning in [PRESETS[name].finetune]
        if tuning is not None
    }
    assert rates == {
        "vqa2_base": (2e-5, 4e-5, 2.0),
        "vqa2_large": (2e-5, 2e-5, 2.0),
        "coco_captioning_large": (1e-5, 5e-6, 2.0),
    }
    frames = {name: one.finetune and one.finetune.frames_per_clip for name, one in PRESETS.items()}
    assert {name: number for name, number in frames.items() if number} == {
        "msrvtt_retrieval": 5,
        "msrvtt_qa": 5,
        "msvd_qa": 8,
    }
    shortlists = {name: one.options["shortlist"] for name, one in PRESETS.items() if "shortlist" in one.options}
    assert shortlists["coco_retrieval"] == shortlists["coco_multilingual"] == 256
    assert shortlists["msrvtt_retrieval"] == 32
    assert shortlists["flickr30k_retrieval"] == shortlists["vqa2_base"] == shortlists["xgqa"] == 128
    since = {name: one.finetune.select_from_epoch for name, one in PRESETS.items() if one.finetune}
    assert {name: epoch for name, epoch in since.items() if epoch} == {
        **{"vqa2_base": 2, "vqa2_large": 2, "xgqa": 2, "xgqa_few_shot": 2},
        **{"wit": 3, "xflickrco": 7},
    }
    splits = {name: one.finetune.reference_splits for name, one in PRESETS.items() if one.finetune}
    assert {name: chosen for name, chosen in splits.items() if chosen != ("test",)} == {"nlvr2": ("val", "test")}
    large = preset("refcoco_plus_large").finetune
    assert large is not None
    assert large.drop_path == 0.1


def test_fine_tuning_augments_as_the_released_scripts_do() -> None:
    """Crops of 0.5 to 1 of the area, a mirror, two of the ten operations at level 7, each with one half."""
    for augment in [FinetuneConfig().augment, *(one.finetune.augment for one in PRESETS.values() if one.finetune)]:
        assert augment == AugmentConfig(min_area=0.5, flip_prob=0.5, num_ops=2, op_prob=0.5, strength=7)
        assert augment.careful_flip


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_written_into_a_file_and_says_where_it_comes_from(name: str) -> None:
    one = PRESETS[name]
    assert one.name == name
    assert one.source
    assert all(text.strip() for text in one.assumed)
    if one.finetune is not None:
        assert FinetuneConfig.model_validate(one.finetune.model_dump(mode="json")) == one.finetune
        assert one.finetune.batch_size % (one.finetune.world_size * one.finetune.accumulate) == 0


@pytest.mark.parametrize("name", [name for name, one in PRESETS.items() if one.task in TASKS])
def test_options_are_those_of_the_task(name: str) -> None:
    one = PRESETS[name]
    one.check()
    read = task_spec(one.task).config_type.model_validate(dict(one.options)).model_dump(mode="json")
    assert {key: read[key] for key in one.options} == dict(one.options)


def test_options_that_no_task_takes_are_named_with_the_preset() -> None:
    wrong = Preset("mine", "retrieval", "nowhere", None, {"shortlst": 3})
    with pytest.raises(ConfigError, match=r"(?s)preset mine.*shortlst.*did you mean `shortlist`"):
        wrong.check()


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="did you mean `vqa2_base`"):
        preset("vqa_base")


def test_a_preset_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        preset("nlvr2").options["num_images"] = 1  # type: ignore[index]


def test_reading_presets_needs_no_torch(project_root: Path) -> None:
    code = "import sys, x2vlm.tasks.presets; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=project_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
