"""Configuration of the score stage."""

from typing import Literal

from pydantic import Field, model_validator

from x2vlm.config import FrozenConfig

FOLDER = "folder"


class ScoreConfig(FrozenConfig):
    """The model, and the measurements in addition to the score of a row.

    `model` is "folder" (the files of the `model` slot) or a name: "ViT-B-32/laion2b_s34b_b79k", "hf-hub:owner/model".
    A name needs `weights_sha256`, because a name alone does not determine the scores.
    """

    model: str = FOLDER
    weights_sha256: str = ""
    regions: bool = False  # also score every concept's text against its box, cut out of the image
    # Fingerprints of every image's variants too (`x2vlm.data.media.phash.variants`), for images of tests: a copy in
    # the training set may be mirrored or cropped.
    variants: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Images in the model at a time. Not in the fingerprint: it changes scores by less than 1e-6.
    batch_size: int = Field(default=64, ge=1, exclude=True)
    # Threads that decode, resize and fingerprint while the model processes the previous batch.
    decode_threads: int = Field(default=2, ge=1, exclude=True)

    @model_validator(mode="after")
    def _name_is_pinned(self) -> "ScoreConfig":
        if (self.model == FOLDER) == bool(self.weights_sha256):
            raise ValueError("weights_sha256 is needed with a model name, and only then: a folder's files are inputs")
        return self
