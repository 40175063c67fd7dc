"""Every recipe measures the tasks of the paper: on cards that exist, by presets of its own size."""

import pytest

from pipelines.evaluation_nodes import task_card
from pipelines.evaluations import EvaluationConfig
from pipelines.experiment import load_experiment, shipped_experiments
from x2vlm.tasks.presets import preset

RECIPES = sorted(name for name in shipped_experiments() if name.startswith(("base_", "large_", "ablation_")))
IMAGE_TASKS = {
    *("coco_retrieval", "flickr30k_retrieval", "vqa", "nlvr2", "refcoco_plus", "coco_captioning", "winoground", "ovad"),
}
CLIP_TASKS = {"msrvtt_retrieval", "msrvtt_qa", "msvd_qa"}
ABLATED = {"coco_retrieval", "vqa", "refcoco_plus", "ovad"}  # what the paper's table of ablations measures


def evaluations(name: str) -> dict[str, EvaluationConfig]:
    return load_experiment(name).evaluate


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_measures_the_tasks_of_the_paper(name: str) -> None:
    found = set(evaluations(name))
    if name.startswith("ablation_temporal"):
        assert found == {"coco_retrieval", "vqa", *CLIP_TASKS}
    elif name.startswith("ablation_"):
        assert found == ABLATED
    else:
        assert found == (IMAGE_TASKS | CLIP_TASKS if "_1b_" in name else IMAGE_TASKS)


@pytest.mark.parametrize("name", RECIPES)
def test_cards_hold_every_split_that_is_learned_from_or_measured(name: str) -> None:
    for key, evaluation in evaluations(name).items():
        assert evaluation.data is not None
        card, splits = task_card(evaluation.data, evaluation.needed_splits)
        assert card.task == evaluation.task, key
        assert set(splits) == set(evaluation.needed_splits)
        assert evaluation.data.media_root
        if "val" in evaluation.needed_splits and evaluation.finetune is not None:
            assert card.split(splits["val"]).has_answers


@pytest.mark.parametrize("name", RECIPES)
def test_settings_are_those_of_the_presets(name: str) -> None:
    size = "large" if name.startswith("large") else "base"
    captions = "coco_captioning_paper" if name.endswith("_paper") else f"coco_captioning_{size}"
    named = {"vqa": f"vqa2_{size}", "refcoco_plus": f"refcoco_plus_{size}", "coco_captioning": captions}
    for key, evaluation in evaluations(name).items():
        one = preset(named.get(key, key))
        assert one.task == evaluation.task
        assert {option: getattr(evaluation.options, option) for option in one.options} == dict(one.options)
        expected = one.finetune
        if key in ("vqa", "msrvtt_retrieval"):  # learned from the split that would choose the epoch
            assert expected is not None
            expected = expected.model_copy(update={"selection": "last"})
        assert evaluation.finetune == expected
