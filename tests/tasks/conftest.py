"""The small random model of all tasks."""

import pytest

from tests.support.models.tasks import small_task_model
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM


@pytest.fixture(scope="module")
def model() -> X2VLM:
    return small_task_model().base


@pytest.fixture(scope="module")
def task_model(model: X2VLM) -> TaskModel:
    return TaskModel(model)
