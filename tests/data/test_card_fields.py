"""datasets/README.md explains every field a card can have, and none that it cannot."""

import re
from pathlib import Path

from x2vlm.data.cards import Card, CardFile, UrlBase
from x2vlm.data.task_cards import TaskCard, TaskPart, TaskSplit


def test_the_page_lists_the_fields_of_a_card(project_root: Path) -> None:
    page = (project_root / "datasets/README.md").read_text(encoding="utf-8")
    table = page.partition("## Fields of a card")[2].partition("## Cards of downstream tasks")[0]
    listed = [
        name for cell in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell)
    ]
    assert sorted(listed) == sorted(Card.model_fields)
    for name in [*CardFile.model_fields, *(field.alias or name for name, field in UrlBase.model_fields.items())]:
        assert f"`{name}`" in table


def test_the_page_lists_the_fields_of_a_task_card(project_root: Path) -> None:
    page = (project_root / "datasets/README.md").read_text(encoding="utf-8")
    section = page.partition("## Cards of downstream tasks")[2]
    listed = set(re.findall(r"`(\w+)[`:]", section))
    for fields in (TaskCard.model_fields, TaskSplit.model_fields, TaskPart.model_fields):
        assert set(fields) <= listed
    rows = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    assert {name for cell in rows for name in re.findall(r"`(\w+)`", cell)} <= set(TaskCard.model_fields)
