"""Small random backbones as they are published: a BEiT-2, a BERT and an XLM-R, and folders of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from timm.models.beit import Beit
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, XLMRobertaConfig, XLMRobertaForMaskedLM

from tests.support.models.tiny import tiny_config
from x2vlm.models.config import TextConfig
from x2vlm.models.x2vlm import X2VLM, build_model

XLM_TEXT = TextConfig(
    architecture="xlm-roberta", width=16, num_layers=3, num_heads=2, intermediate=32, vocab_size=90, max_positions=24,
    type_vocab_size=1, pad_id=1, layer_norm_eps=1e-5,
)  # fmt: skip


def small_beit(shared: bool = False, image_res: int = 64) -> Beit:
    """The image tower of `tiny_config`."""
    torch.manual_seed(5)
    beit = Beit(
        img_size=image_res, embed_dim=24, depth=2, num_heads=2, num_classes=7, init_values=0.1, global_pool="avg",
        use_abs_pos_emb=False, use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared,
    )  # fmt: skip
    return _drawn(beit)


def small_bert(num_layers: int = 2, **changes) -> BertForMaskedLM:
    """The text tower of `tiny_config`, with a word head."""
    torch.manual_seed(6)
    sizes = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": num_layers, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 20,
    }  # fmt: skip
    return _drawn(BertForMaskedLM(BertConfig(**(sizes | changes))))


def small_xlmr(**changes) -> XLMRobertaForMaskedLM:
    """The text tower of XLM_TEXT, with a word head that no model of ours takes."""
    torch.manual_seed(8)
    sizes = {
        "vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 24, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5,
    }  # fmt: skip
    return _drawn(XLMRobertaForMaskedLM(XLMRobertaConfig(**(sizes | changes))))


def _drawn(module):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def bert_sized_model(num_fusion: int = 1) -> X2VLM:
    """A model that `small_bert` and `small_beit` fit."""
    fusion = {"num_layers": num_fusion, "num_heads": 2, "intermediate": 32}
    torch.manual_seed(0)
    return build_model(tiny_config(fusion=fusion)).eval()


def text_folder(
    folder: Path,
    encoder: PreTrainedModel,
    change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> Path:
    """`encoder` as transformers saves it; `change` gives other contents of its weight file."""
    encoder.save_pretrained(folder)
    if change is not None:
        state = dict(change(load_file(folder / "model.safetensors")))
        save_file(
            {name: value.contiguous().clone() for name, value in state.items()}, folder / "model.safetensors",
            metadata={"format": "pt"},
        )  # fmt: skip
    return folder
