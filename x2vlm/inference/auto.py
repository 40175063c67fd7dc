"""Model and processor as people of Hugging Face's transformers expect them.

    import x2vlm.inference
    from transformers import AutoModel, AutoProcessor

    model, processor = AutoModel.from_pretrained(name), AutoProcessor.from_pretrained(name)
    outputs = model(**processor(images=[photo], text=["a dog"]))
    outputs.match_logits.softmax(dim=-1)[:, 1]

`name` is a folder that `save_pretrained` wrote, or a hub name `owner/name`. The folder is the same as that of
`x2vlm.inference.load`; these classes only wrap it.
B rows, C channels, H W pixels, L tokens, E width of the comparison space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoProcessor, BatchFeature, PreTrainedModel
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import PushToHubMixin

from x2vlm.config import parse_config
from x2vlm.errors import ConfigError
from x2vlm.inference.auto_config import X2VLMConfig
from x2vlm.inference.hub import locate_model
from x2vlm.inference.pretrained import load_pretrained, save_pretrained
from x2vlm.inference.processor import Processor, load_processor, save_processor
from x2vlm.inference.visuals import Source
from x2vlm.models.config import ModelConfig
from x2vlm.models.files import CONFIG_FILE, WEIGHTS_FILE
from x2vlm.models.x2vlm import X2VLM, build_model

# Of the arguments of transformers' `from_pretrained`, those that say where a model is fetched from and kept.
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


@dataclass
class X2VLMOutput(ModelOutput):
    """Features (B, E) of length 1 of what was given, and matching logits (B, 2) if both were."""

    image_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    match_logits: Tensor | None = None


class X2VLMModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """An X2VLM (attribute `x2vlm`, with all its methods) as a model of transformers."""

    config_class = X2VLMConfig
    main_input_name = "pixel_values"

    def __init__(self, config: X2VLMConfig, model: X2VLM | None = None) -> None:
        super().__init__(config)
        self.x2vlm = model or build_model(parse_config(ModelConfig, config.model, "X2VLMConfig.model"))
        self.train(self.x2vlm.training)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Features (B, E) of length 1 of images (B, C, H, W)."""
        return self.x2vlm.project_vision(self.x2vlm.encode_image(pixel_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Features (B, E) of length 1 of texts (B, L)."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self.x2vlm.project_text(self.x2vlm.encode_text(input_ids, mask))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> X2VLMOutput:
        """What can be said of images and texts; of as many images as texts, whether each pair matches."""
        model, output = self.x2vlm, X2VLMOutput()
        vision = None if pixel_values is None else model.encode_image(pixel_values)
        if vision is not None:
            output.image_embeds = model.project_vision(vision)
        if input_ids is not None:
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            states_BLD = model.encode_text(input_ids, mask)
            output.text_embeds = model.project_text(states_BLD)
            if vision is not None and vision.num_rows == len(input_ids):
                output.match_logits = model.match(model.fuse(states_BLD, mask, vision))
        return output

    @classmethod
    def from_pretrained(cls, name: str | Path, *_: Any, **options: Any) -> X2VLMModel:  # type: ignore[override]
        """The model in a folder or hub repository, in evaluation mode; `dtype` as in transformers.

        Other arguments than those of the hub are for ways of loading that this model does not have: `device_map` and
        quantization are refused with ConfigError. Raises also what `x2vlm.inference.pretrained.from_pretrained` does.
        """
        if unknown := sorted(key for key in ("device_map", "quantization_config") if options.get(key) is not None):
            raise ConfigError(
                f"{', '.join(unknown)}: not known to x2vlm; load the model, then move it with .to(device)"
            )
        folder = locate_model(name, **_hub_options(options))
        model = load_pretrained(folder / CONFIG_FILE, folder / WEIGHTS_FILE)
        config = options.get("config") or X2VLMConfig.from_pretrained(folder)
        dtype = options.get("dtype") or options.get("torch_dtype")
        if isinstance(dtype, torch.dtype):
            model.to(dtype)
        return cls(config, model)  # in evaluation mode, as the model is

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # type: ignore[override]
        """The model's folder, without a processor: save that one there too."""
        save_pretrained(self.x2vlm, Path(save_directory), training=self.config.training)


class X2VLMProcessor(PushToHubMixin):
    """A `Processor` (attribute `processor`) that is called as those of transformers are."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def __call__(
        self, images: Sequence[Source] | Source | None = None, text: Sequence[str] | str | None = None, **_: Any
    ) -> BatchFeature:
        """`pixel_values` (B, C, H, W), `input_ids` and `attention_mask` (B, L) of whatever is given, as torch tensors.

        InvalidSample for images that cannot be read, for clips, and for texts without a word.
        """
        found: dict[str, Tensor] = {}
        if images is not None:
            listed: Sequence[Any] = images if isinstance(images, list | tuple) else [images]
            found["pixel_values"] = self.processor.images([self.processor.read_image(image) for image in listed])
        if text is not None:
            ids_BL, mask_BL = self.processor.texts([text] if isinstance(text, str) else list(text))
            found |= {"input_ids": ids_BL, "attention_mask": mask_BL.long()}
        return BatchFeature(found)

    def decode(self, ids: Sequence[int] | Tensor, **_: Any) -> str:
        """The text of `ids`."""
        return self.processor.decode([int(number) for number in ids])

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> X2VLMProcessor:
        """The processor in a folder or hub repository; raises what `x2vlm.inference.processor.load_processor` does."""
        return cls(load_processor(locate_model(name, **_hub_options(options))))

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """The processor's files, beside those of the model."""
        save_processor(self.processor, Path(save_directory))


def register_classes() -> None:
    """Make transformers' `AutoModel` and `AutoProcessor` know the classes above."""
    AutoModel.register(X2VLMConfig, X2VLMModel, exist_ok=True)
    AutoProcessor.register(X2VLMConfig, X2VLMProcessor, exist_ok=True)  # type: ignore[no-untyped-call]


def _hub_options(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in _HUB_OPTIONS if options.get(key) is not None}
