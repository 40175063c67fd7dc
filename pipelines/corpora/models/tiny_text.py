"""The text side that the project's own small CLIPs have in common, as open_clip describes it."""

from transformers import PreTrainedTokenizerBase

WIDTH, HEADS, LAYERS = 64, 2, 2


def text_config(name: str, tokenizer: PreTrainedTokenizerBase, context_length: int) -> dict[str, object]:
    """open_clip's `text_cfg` for the words of `tokenizer`, which open_clip takes from the model's own folder."""
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
