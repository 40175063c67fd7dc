"""The config of a model's folder as transformers reads it; what makes `AutoModel` and `AutoProcessor` know the folder.

transformers calls a config's class before it looks for the model of that class. So the classes of `auto`, which import
torch and the model, are registered when the first config is made, and not when `x2vlm.inference` is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.configuration_utils import PretrainedConfig

from x2vlm.inference.pretrained import MODEL_TYPE


class X2VLMConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """`model` holds the fields of `x2vlm.models.config.ModelConfig`, `training` how the model was made."""

    model_type = MODEL_TYPE

    def __init__(
        self, model: Mapping[str, Any] | None = None, training: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        from x2vlm.inference.auto import register_classes

        register_classes()
        super().__init__(**options)
        self.model = dict(model or {})
        self.training = dict(training or {})


def register_config(auto_config: Any) -> None:
    """Make transformers' `AutoConfig` know `model_type: x2vlm`."""
    auto_config.register(MODEL_TYPE, X2VLMConfig, exist_ok=True)
