"""Every split of a world's cards passes the check that its task makes before the first batch."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora.world import World
from x2vlm.data.task_cards import load_task_card, part_paths, read_split
from x2vlm.errors import ConfigError
from x2vlm.tasks.catalog import TASKS

OPTIONS: dict[str, dict[str, Any]] = {"nlvr2": {"num_images": 2}, "marvl": {"num_images": 2}}


def checked(world: World, name: str, **options: Any) -> int:
    """How many splits of a card its task accepts; ConfigError for the first that it does not."""
    card = load_task_card(world.out / "cards" / "tasks" / f"{name}.yaml")
    spec = TASKS[card.task]
    task, values = spec.load(), spec.config_type(**(OPTIONS.get(name, {}) | options))
    for split in card.splits:
        parts = [{role: Path(path) for role, path in part.items()} for part in part_paths(card, split, Path("/"))]
        data = read_split(card, split, parts)
        task.check(data.examples, data.labels, values)
    return len(card.splits)


def test_tasks_accept_every_split(noisy_world: World) -> None:
    cards = {path.stem: load_task_card(path) for path in (noisy_world.out / "cards" / "tasks").glob("*.yaml")}
    known = sorted(name for name, card in cards.items() if card.task in TASKS)
    assert len(known) == len(cards) == 16
    assert all(checked(noisy_world, name) for name in known)


def test_a_task_refuses_a_split_of_another_kind(noisy_world: World) -> None:
    with pytest.raises(ConfigError, match=r"2 images.* this task takes 1"):
        checked(noisy_world, "nlvr2", num_images=1)
