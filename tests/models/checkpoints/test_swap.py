"""Another text encoder below a trained model: every tensor comes from where the report says, in its own tower."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import XLMRobertaModel

from tests.support.models import reference_shapes as tables
from tests.support.models.backbones import XLM_TEXT, small_bert, small_xlmr, text_folder
from tests.support.models.reference_shapes import Sizes, random_state
from tests.support.models.tiny import tiny_config
from x2vlm.errors import ConfigError
from x2vlm.models.checkpoints.backbones import Backbone, read_text_backbone
from x2vlm.models.checkpoints.reference import export_reference_state, load_reference_state
from x2vlm.models.checkpoints.swap import load_swapped, state_without_text
from x2vlm.models.config import FusionConfig, VisionConfig
from x2vlm.models.x2vlm import build_model, swap_text_encoder

# Two text layers, three fusion layers, another vocabulary than the encoder that comes in, which has three layers.
SIZES = Sizes(
    vision=24, depth=2, vision_heads=2, grid=4, vision_inner=96, text=16, text_layers=2, fusion_layers=3, inner=40,
    vocab=50, positions=20, embed=8,
)  # fmt: skip
KINDS = {
    "pretraining": tables.pretrained,
    "retrieval": tables.retrieval,
    "captioning": tables.captioning,
    "question_answering": tables.question_answering,
    "multilingual_pretraining": tables.multilingual,
}


def new_model(text=XLM_TEXT, **changes):
    torch.manual_seed(1)
    vision = VisionConfig(image_res=64, width=24, depth=2, num_heads=2)
    fusion = FusionConfig(num_layers=3, num_heads=2, intermediate=40)
    return build_model(tiny_config(vision=vision, text=text, fusion=fusion, **({"tie_words": False} | changes)))


@pytest.fixture(scope="module")
def xlmr(tmp_path_factory):
    return text_folder(tmp_path_factory.mktemp("xlmr"), small_xlmr())


def swapped(kind, xlmr, prefix=""):
    state = {f"{prefix}{name}": value for name, value in random_state(KINDS[kind](SIZES), SIZES).items()}
    model = new_model()
    text = read_text_backbone(xlmr)
    report = load_swapped(model, Backbone(state, "checkpoint", "model.th"), Backbone(text.state, "swap_text", "x"))
    return state, model, report


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_the_entry_that_the_report_names_or_as_drawn(xlmr, kind):
    state, model, report = swapped(kind, xlmr)
    files = {"checkpoint": state, "swap_text": load_file(xlmr / "model.safetensors")}
    ours, drawn = export_reference_state(model), export_reference_state(new_model())
    assert report.origins.keys() == set(report.loaded)
    for name in report.loaded:
        file, entry = report.origins[name].split(": ")
        assert torch.equal(ours[name], files[file][entry]), name
        expected = "swap_text" if name.startswith("text_encoder.") else "checkpoint"
        assert file == expected, name
    for name in report.missing:
        assert torch.equal(ours[name], drawn[name]), name


def test_what_a_pretrained_checkpoint_gives_and_what_starts_anew(xlmr):
    """Fusion layers move down by the text layers; of the word head only what depends on the vocabulary is new."""
    _, _, report = swapped("pretraining", xlmr)
    assert sorted(report.missing) == ["mlm_head.predictions.bias", "mlm_head.predictions.decoder.weight"]
    origins = report.origins
    fused = "crossattention.self.key.weight"
    entry = f"checkpoint: text_encoder.bert.encoder.layer.4.{fused}"
    assert origins[f"cross_encoder.encoder.layer.2.{fused}"] == entry
    assert origins["mlm_head.predictions.transform.dense.weight"] == (
        "checkpoint: text_encoder.cls.predictions.transform.dense.weight"
    )
    entry = "swap_text: roberta.encoder.layer.2.output.dense.bias"
    assert origins["text_encoder.encoder.layer.2.output.dense.bias"] == entry
    left = {"encoder.layer.1.output.dense.bias", "embeddings.word_embeddings.weight"}
    left = {f"text_encoder.bert.{name}" for name in left} | {"text_encoder.cls.predictions.bias", "lm_head.bias"}
    assert left <= set(report.unexpected)


def test_files_and_modules_swap_to_the_same_model(xlmr):
    """`swap_text_encoder` of a model in memory and `load_swapped` of its file agree but for what is new."""
    state, model, _ = swapped("pretraining", xlmr)
    torch.manual_seed(2)
    bert = tiny_config(text={"width": 16, "num_layers": 2, "num_heads": 2, "intermediate": 40, "vocab_size": 50,
                             "max_positions": 20}).text  # fmt: skip
    first = new_model(bert, tie_words=True)
    load_reference_state(first, state)
    encoder = XLMRobertaModel.from_pretrained(xlmr, add_pooling_layer=False)
    other = export_reference_state(swap_text_encoder(first, encoder))
    ours = export_reference_state(model)
    assert set(ours) == set(other)
    assert {name for name in ours if not torch.equal(ours[name], other[name])} <= {
        "mlm_head.predictions.decoder.weight", "mlm_head.predictions.bias", "mlm_head.predictions.decoder.bias"
    }  # fmt: skip
    assert swap_text_encoder(first, encoder).word_head.norm.eps == pytest.approx(1e-5)


def test_a_tied_model_takes_another_vocabulary_too(tmp_path):
    """A BERT of another language: the fusion layers stay in one stack with its layers."""
    folder = text_folder(tmp_path, small_bert(num_layers=4, vocab_size=70))
    text = {"width": 16, "num_layers": 4, "num_heads": 2, "intermediate": 32, "vocab_size": 70, "max_positions": 20}
    model = new_model(tiny_config(text=text).text, tie_words=True)
    state = random_state(tables.pretrained(SIZES), SIZES)
    report = load_swapped(model, Backbone(state, "checkpoint", "model.th"), read_text_backbone(folder))
    assert report.missing == ["text_encoder.cls.predictions.bias"]
    entry = "text_encoder.bert.encoder.layer.2.crossattention.self.key.weight"
    fused = model.fusion.layers[0].cross_attention.key.weight
    assert torch.equal(fused, state[entry])
    assert report.origins["text_encoder.bert.encoder.layer.4.crossattention.self.key.weight"] == f"checkpoint: {entry}"


def test_a_checkpoint_of_a_wrapped_model_is_the_same(xlmr):
    _, plain, _ = swapped("pretraining", xlmr)
    _, wrapped, report = swapped("pretraining", xlmr, prefix="module.")
    for name, value in export_reference_state(plain).items():
        assert torch.equal(export_reference_state(wrapped)[name], value), name
    assert report.origins["temp"] == "checkpoint: module.temp"


def test_what_has_no_fusion_layers_is_refused():
    state = random_state(tables.vision_encoder(SIZES), SIZES)
    with pytest.raises(ConfigError, match=r"beit\.pth: no layer has cross-attention"):
        state_without_text(state, "beit.pth")


def test_an_encoder_of_another_width_is_refused(tmp_path):
    folder = text_folder(tmp_path, small_xlmr(hidden_size=32))
    state = random_state(tables.pretrained(SIZES), SIZES)
    with pytest.raises(ConfigError, match=r"has shape \(90, 32\), the model needs \(90, 16\)"):
        load_swapped(new_model(), Backbone(state, "checkpoint", "model.th"), read_text_backbone(folder))
