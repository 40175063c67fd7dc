"""Sizes of the heads of downstream tasks, without importing torch."""

from typing import Annotated, Literal

import pydantic

from x2vlm.config import FrozenConfig

# How the decoder's answers are ranked. "released": the log probability of the first token counts twice, as in the
# reference; "chain": once.
AnswerScore = Literal["released", "chain"]


class ClassifierConfig(FrozenConfig):
    """A perceptron on the fused state of token 0, of each of `num_images` images side by side (NLVR2: 2)."""

    kind: Literal["classifier"] = "classifier"
    num_labels: int = pydantic.Field(ge=1)
    num_images: int = pydantic.Field(default=1, ge=1)


class DecoderConfig(FrozenConfig):
    """A decoder of answers that attends to the fused states of a question (X2-VLM 4.3.2: 6 layers).

    `num_layers`: None takes as many as the model has fusion layers. `num_positions` and `num_types`: sizes of its own
    tables; None: those of the text tower. The multilingual decoder of the reference takes them from the BERT that its
    fusion layers were described by. `tie_words`: whether its output matrix is its table of word embeddings.
    """

    kind: Literal["decoder"] = "decoder"
    num_layers: int | None = pydantic.Field(default=None, ge=1)
    num_positions: int | None = pydantic.Field(default=None, ge=1)
    num_types: int | None = pydantic.Field(default=None, ge=1)
    tie_words: bool = True


HeadConfig = Annotated[ClassifierConfig | DecoderConfig, pydantic.Field(discriminator="kind")]
