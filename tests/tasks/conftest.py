"""The small random model of all tasks."""

import pytest
import torch

from x2vlm.models.config import FusionConfig, ModelConfig, TextConfig, VisionConfig
from x2vlm.models.downstream.task_model import TaskModel
from x2vlm.models.x2vlm import X2VLM, build_model


@pytest.fixture(scope="module")
def model() -> X2VLM:
    torch.manual_seed(3)
    return build_model(
        ModelConfig(
            vision=VisionConfig(image_res=32, width=32, depth=2, num_heads=2),
            text=TextConfig(width=32, num_layers=2, num_heads=2, intermediate=64, vocab_size=16, max_positions=16),
            fusion=FusionConfig(num_layers=2, num_heads=2, intermediate=64),
            embed_dim=16,
        )
    )


@pytest.fixture(scope="module")
def task_model(model: X2VLM) -> TaskModel:
    return TaskModel(model)
