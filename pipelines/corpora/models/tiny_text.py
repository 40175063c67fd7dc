"""The text tower configuration of the project's small CLIP models, in open_clip's format."""

from transformers import PreTrainedTokenizerBase

WIDTH, HEADS, LAYERS = 64, 2, 2


def text_config(name: str, tokenizer: PreTrainedTokenizerBase, context_length: int) -> dict[str, object]:
    """open_clip's `text_cfg` for the vocabulary of `tokenizer`, which open_clip loads from the model's folder."""
    return {
        "hf_tokenizer_name": name,
        "context_length": context_length,
        "vocab_size": len(tokenizer),
        "width": WIDTH,
        "heads": HEADS,
        "layers": LAYERS,
        "pool_type": "eos",
        "eos_id": tokenizer.sep_token_id,
    }
