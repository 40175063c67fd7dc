"""Start weights are what a file holds: nothing is filled in, and what is wrong with a file is said with its name."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from tests.support.models.backbones import (
    XLM_TEXT,
    bert_sized_model,
    small_beit,
    small_bert,
    small_xlmr,
    text_folder,
)
from tests.support.models.tiny import tiny_model
from x2vlm.errors import ConfigError, CorruptArtifact, SourceUnavailable, X2VLMError
from x2vlm.models.checkpoints.backbones import read_text_backbone
from x2vlm.models.checkpoints.initialize import initialize

QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The folder of a small BERT."""
    return text_folder(tmp_path_factory.mktemp("text") / "bert", small_bert())


@pytest.fixture
def folder(bert, tmp_path):
    """A copy of it to change."""
    return shutil.copytree(bert, tmp_path / "bert")


def started(path):
    model = bert_sized_model()
    return model, initialize(model, text=path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_a_file_of_a_wrapped_model_starts_the_same_tower(bert, tmp_path, prefix):
    wrapped = text_folder(tmp_path / "wrapped", small_bert(), lambda s: {f"{prefix}{k}": v for k, v in s.items()})
    (model, report), (expected, _) = started(wrapped), started(bert)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert report.origins[f"text_encoder.bert.{QUERY}"] == f"{wrapped}: {prefix}bert.{QUERY}"


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {k.removeprefix("bert."): v for k, v in s.items() if k.startswith("bert.")},
        lambda s: {k: v for k, v in s.items() if k.startswith("bert.")},
    ],
    ids=["encoder_only", "encoder_with_prefix"],
)
def test_a_word_head_that_the_file_lacks_is_new_and_said_to_be(tmp_path, change):
    folder = text_folder(tmp_path / "encoder", small_bert(), change)
    model, report = started(folder)
    heads = {"bias", "transform.dense.weight", "transform.dense.bias", "transform.LayerNorm.weight",
             "transform.LayerNorm.bias"}  # fmt: skip
    assert {f"text_encoder.cls.predictions.{name}" for name in heads} <= set(report.missing)
    entries = set(load_file(folder / "model.safetensors"))
    assert {origin.removeprefix(f"{folder}: ") for origin in report.origins.values()} <= entries
    assert report.origins.keys() == set(report.loaded)
    for name, value in model.state_dict().items():
        if name.startswith("word_head"):
            assert torch.equal(value, bert_sized_model().state_dict()[name]), name


def renamed(state):
    return {k.replace("attention.self", "attn"): v for k, v in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if "layer.1." not in k}, r"16 entries .* missing: encoder\.layer\.1\."),
        (lambda s: {k: v for k, v in s.items() if "layer.0." not in k}, r"16 entries .* missing: encoder\.layer\.0\."),
        (lambda s: {k: v for k, v in s.items() if not k.endswith(QUERY)}, r"1 entries .* missing: encoder\.layer\.1"),
        (lambda s: {k: v for k, v in s.items() if "word_emb" not in k}, r"missing: embeddings\.word_embeddings"),
        (lambda s: {k: v for k, v in s.items() if "LayerNorm" not in k}, r"10 entries of its encoder are missing"),
        (lambda s: {f"backbone.{k}": v for k, v in s.items()}, r"37 entries .*are none of .*: backbone\.bert\."),
        (renamed, r"12 entries of its encoder are missing.*12 entries are none of.*layer\.0\.attn\.key\.bias"),
        (lambda s: s | {"bert.adapter.weight": torch.zeros(2)}, r"1 entries are none .*: bert\.adapter\.weight"),
        (lambda s: s | {"bert.encoder.layer.9.output.dense.bias": torch.zeros(16)}, r"encoder\.layer\.2\."),
        (lambda s: s | {"bert.encoder.layer.99999999999.output.dense.bias": torch.zeros(16)}, r"none of .*99999999999"),
        (lambda s: s | {"bert.encoder.layer.0.crossattention.self.key.bias": torch.zeros(16)}, "crossattention"),
        (lambda s: s | {QUERY: torch.zeros(16, 16)}, "with different values"),
        (lambda s: s | {f"bert.{QUERY}": torch.zeros(16, 15)}, r"query\.weight has shape \(16, 15\)"),
        (lambda s: s | {f"bert.{QUERY}": torch.zeros(16, 16, dtype=torch.int8)}, r"query\.weight \(torch\.int8\)"),
        (lambda s: s | {f"bert.{QUERY}": torch.full((16, 16), torch.nan)}, r"query\.weight .* finite"),
        (lambda s: s | {f"bert.{QUERY}": torch.full((16, 16), torch.inf).half()}, r"query\.weight .* finite"),
    ],
    ids=[
        "no_last_layer", "no_first_layer", "no_query", "no_words", "no_norms", "other_prefix", "other_names", "adapter",
        "gap", "absurd_layer", "cross_attention", "twice", "other_shape", "quantised", "nan", "infinite",
    ],
)  # fmt: skip
def test_a_file_with_other_entries_than_its_encoder_is_refused_with_names(tmp_path, change, message):
    folder = text_folder(tmp_path / "changed", small_bert(), change)
    model = bert_sized_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message) as caught:
        initialize(model, text=folder)
    assert str(folder / "model.safetensors") in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 4}, r"num_attention_heads is 4, model\.text\.num_heads is 2"),
        ({"num_attention_heads": "two"}, r"num_attention_heads is 'two'"),
        ({"model_type": "roberta"}, r"model_type is 'roberta', model\.text\.architecture is 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_hidden_layers": 3}, r"16 entries of its encoder are missing: encoder\.layer\.2\."),
    ],
)
def test_a_description_of_another_function_is_refused(folder, values, message):
    """Shapes do not tell these."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ConfigError, match=message):
        started(folder)


def test_positions_of_another_padding_are_refused(tmp_path):
    """XLM-R counts positions from behind its padding token: another id would shift all of them."""
    folder = text_folder(tmp_path / "xlmr", small_xlmr())
    report = initialize(tiny_model(text=XLM_TEXT, tie_words=False), text=folder)
    assert report.origins["text_encoder.embeddings.LayerNorm.bias"] == f"{folder}: roberta.embeddings.LayerNorm.bias"
    model = tiny_model(text=XLM_TEXT.model_copy(update={"pad_id": 0}), tie_words=False)
    with pytest.raises(ConfigError, match=r"pad_token_id is 1, model\.text\.pad_id is 0"):
        initialize(model, text=folder)


def test_a_pickled_and_a_sharded_folder_start_the_same_tower(bert, tmp_path):
    expected, _ = started(bert)
    pickled, sharded = tmp_path / "pickled", tmp_path / "sharded"
    shutil.copytree(bert, pickled)
    state = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    # As BERT was published: old names of norms, a tied matrix written twice, heads of other tasks, constants.
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
           for k, v in state.items()}  # fmt: skip
    old["cls.predictions.decoder.weight"] = old["bert.embeddings.word_embeddings.weight"]
    old |= {"cls.seq_relationship.bias": torch.zeros(2), "bert.pooler.dense.bias": torch.zeros(16)}
    old |= {"bert.embeddings.position_ids": torch.arange(20)[None], "classifier.weight": torch.zeros(3, 16)}
    torch.save(old, pickled / "pytorch_model.bin")
    small_bert().save_pretrained(sharded, max_shard_size="6KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 3
    for folder in (pickled, sharded):
        model, report = started(folder)
        for name, value in expected.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        entries = set(read_text_backbone(folder).state)
        assert {origin.removeprefix(f"{folder}: ") for origin in report.origins.values()} <= entries
    assert "bert.pooler.dense.bias" in started(pickled)[1].unexpected


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def to_nowhere(path):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def to_itself(path):
    path.unlink()
    path.symlink_to(path)


def pickled(content):
    def write(folder):
        (folder / "model.safetensors").unlink()
        torch.save(content(folder), folder / "pytorch_model.bin")

    return write


def sharded(index, *names):
    def write(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return write


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


CONFIG, WEIGHTS, BIN, INDEX = "config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
BROKEN = {
    "weights_cut": (lambda f: cut(f / WEIGHTS), CorruptArtifact, WEIGHTS),
    "weights_empty": (written(WEIGHTS, b""), CorruptArtifact, WEIGHTS),
    "weights_html": (written(WEIGHTS, b"<html>404</html>"), CorruptArtifact, WEIGHTS),
    "weights_huge_header": (written(WEIGHTS, b"\xff" * 32), CorruptArtifact, WEIGHTS),
    "weights_to_nowhere": (lambda f: to_nowhere(f / WEIGHTS), SourceUnavailable, WEIGHTS),
    "weights_to_themselves": (lambda f: to_itself(f / WEIGHTS), SourceUnavailable, WEIGHTS),
    "weights_a_folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), SourceUnavailable, WEIGHTS),
    "weights_a_pipe": (lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)), SourceUnavailable, WEIGHTS),
    "weights_gone": (lambda f: (f / WEIGHTS).unlink(), SourceUnavailable, "needs config.json and one of model"),
    "config_gone": (lambda f: (f / CONFIG).unlink(), SourceUnavailable, "needs config.json"),
    "config_to_nowhere": (lambda f: to_nowhere(f / CONFIG), SourceUnavailable, CONFIG),
    "config_no_json": (written(CONFIG, b"model_type: bert"), CorruptArtifact, CONFIG),
    "config_a_list": (written(CONFIG, b"[1, 2]"), CorruptArtifact, CONFIG),
    "config_empty": (written(CONFIG, b""), CorruptArtifact, CONFIG),
    "config_not_utf8": (written(CONFIG, b"\xff\xfe{}"), CorruptArtifact, CONFIG),
    "config_deep": (written(CONFIG, b"[" * 200_000), CorruptArtifact, CONFIG),
    "config_long_number": (written(CONFIG, b'{"a": ' + b"9" * 10_000 + b"}"), CorruptArtifact, CONFIG),
    "bin_with_code": (pickled(lambda f: {"bert.a": Bomb(f / "executed")}), CorruptArtifact, BIN),
    "bin_a_list": (pickled(lambda f: [torch.zeros(1)]), CorruptArtifact, BIN),
    "bin_no_tensors": (pickled(lambda f: {"bert.a": "text"}), CorruptArtifact, BIN),
    "bin_cut": (lambda f: (pickled(lambda g: load_file(f / "x"))(shutil.copy(f / WEIGHTS, f / "x").parent),
                           cut(f / BIN)), CorruptArtifact, BIN),
    "index_no_json": (lambda f: (sharded({})(f), (f / INDEX).write_text("{")), CorruptArtifact, INDEX),
    "index_no_map": (sharded({"metadata": {}}), CorruptArtifact, INDEX),
    "index_numbers": (sharded({"weight_map": {"a": 3}}), CorruptArtifact, INDEX),
    "index_outside": (sharded({"weight_map": {"a": "../../etc/passwd"}}), SourceUnavailable, "passwd"),
    "index_gone_shard": (sharded({"weight_map": {"a": "model-2.safetensors"}}), SourceUnavailable, "model-2"),
    "index_other": (sharded({"weight_map": {"a": "model-00001-of-00001.safetensors"}}), CorruptArtifact, INDEX),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_or_hostile_folder_is_an_error_of_ours_that_names_the_file(folder, case):
    change, error, names = BROKEN[case]
    change(folder)
    with pytest.raises(error) as caught:
        started(folder)
    message = str(caught.value)
    assert names in message
    assert str(folder) in message
    assert "weights_only" not in message
    assert not (folder / "executed").exists()


def test_the_bomb_is_a_real_one(folder):
    pickled(lambda f: {"bert.a": Bomb(f / "executed")})(folder)
    torch.load(folder / BIN, weights_only=False)
    assert (folder / "executed").exists()


def test_a_folder_or_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnavailable, match="absent"):
        started(tmp_path / "absent")
    with pytest.raises(SourceUnavailable, match="no-such/encoder"):
        started("no-such/encoder")
    with pytest.raises(SourceUnavailable, match=r"absent\.pth"):
        initialize(bert_sized_model(), vision=tmp_path / "absent.pth")
    (tmp_path / "link.pth").symlink_to(tmp_path / "absent.pth")
    with pytest.raises(SourceUnavailable, match=r"link\.pth: a link to .*absent\.pth"):
        initialize(bert_sized_model(), vision=tmp_path / "link.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", "beit.safetensors"),
        (b"", "beit.safetensors"),
        (None, "vision_encoder.blocks.1.norm1.weight"),
    ],
)
def test_a_broken_image_backbone_is_named(tmp_path, content, message):
    path = tmp_path / "beit.safetensors"
    state = small_beit().state_dict()
    save_file(state | {"blocks.1.norm1.weight": torch.full((24,), torch.nan)}, path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(X2VLMError, match=message) as caught:
        initialize(bert_sized_model(), vision=path)
    assert str(path) in str(caught.value)


def test_an_image_backbone_of_a_wrapped_model_starts_the_same_tower(tmp_path):
    state, towers = small_beit().state_dict(), []
    for prefix in ("", "module."):
        save_file({f"{prefix}{name}": value for name, value in state.items()}, tmp_path / "beit.safetensors")
        model = bert_sized_model()
        report = initialize(model, vision=tmp_path / "beit.safetensors")
        entry = report.origins["vision_encoder.cls_token"]
        assert entry == f"{tmp_path}/beit.safetensors: {prefix}cls_token"
        towers.append(model.vision.state_dict())
    assert all(torch.equal(value, towers[1][name]) for name, value in towers[0].items())


def test_an_encoder_class_without_heads_is_read_as_saved(tmp_path):
    """BertModel has a pooler and no word head; its names have no prefix."""
    encoder = BertModel(small_bert().config)
    text_folder(tmp_path, encoder)
    model, report = started(tmp_path)
    assert torch.equal(model.state_dict()[f"text.encoder.{QUERY}"], encoder.state_dict()[QUERY])
    assert sorted(report.unexpected) == ["pooler.dense.bias", "pooler.dense.weight"]
