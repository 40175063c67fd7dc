"""How a training step is executed. Nothing here changes what is computed; no torch is imported."""

from pydantic import Field

from x2vlm.config import FrozenConfig


class ExecutionConfig(FrozenConfig):
    """Optimisations of the training step, each of which can be switched off for measurements or debugging.

    The first five are exact: losses and gradients differ by rounding only (tests/objectives/test_step.py).
    """

    share_image_keys: bool = True  # image keys and values once per image, not once per text that attends to it
    pack_texts: bool = True  # linear layers run on real tokens only; padding exists only inside the attention cores
    one_fusion_call: bool = True  # all passes of all streams run through the fusion layers together
    prune_last_layer: bool = True  # the last fusion layer is computed for the tokens that a head reads
    only_masked_words: bool = True  # the MLM head scores masked tokens, not unused slots
    compile_blocks: bool = False  # torch.compile for the blocks of the image tower: minutes at the first step
    # Every k-th block of the image tower is recomputed in the backward pass instead of being kept; 0: none.
    checkpoint_vision_blocks: int = Field(default=0, ge=0)
