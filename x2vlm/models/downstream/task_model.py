"""A model of one downstream task: the pre-trained model, and the head that the task adds (none for most)."""

from typing import Protocol, cast

from torch import nn

from x2vlm.models.config import ModelConfig
from x2vlm.models.downstream.classifier import Classifier
from x2vlm.models.downstream.config import ClassifierConfig, DecoderConfig, HeadConfig
from x2vlm.models.downstream.decoder import AnswerDecoder
from x2vlm.models.x2vlm import X2VLM


class TaskHead(Protocol):
    """What every head says of itself."""

    config: ClassifierConfig | DecoderConfig
    reference_prefix: str  # before the names of its parameters in the reference's checkpoints


class TaskModel(nn.Module):
    """`base` with a head for a task; without one (`head` is None) the task uses the heads of pre-training.

    It takes the place of the model in the training loop. A freshly built head has random weights.
    """

    def __init__(self, base: X2VLM, head: HeadConfig | None = None) -> None:
        super().__init__()
        self.base = base
        self.head: nn.Module | None = None if head is None else build_head(head, base)

    @property
    def config(self) -> ModelConfig:
        """The sizes of the base."""
        return self.base.config

    @property
    def head_config(self) -> HeadConfig | None:
        """The sizes of the head, None without one."""
        return None if self.head is None else cast(TaskHead, self.head).config

    def clamp_temperature(self) -> None:
        """As the base does, before every training step."""
        self.base.clamp_temperature()


def build_head(config: HeadConfig, base: X2VLM) -> nn.Module:
    """A head with random weights for a model of the sizes of `base`."""
    match config:
        case ClassifierConfig():
            return Classifier(config, base.config.text.width)
        case DecoderConfig():
            return AnswerDecoder(config, base.config)
