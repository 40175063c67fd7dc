"""Starts that combine a trained model with another text encoder, and what is said about starts that cannot be."""

import hashlib
import json
import os

import pyarrow.parquet as pq
import pydantic
import pytest
import torch
from safetensors.torch import load_file

from pipelines.experiment import load_experiment
from pipelines.flow.stage import Input, InputFile, InputPart
from pipelines.input_files import start_inputs
from pipelines.s5_pretrain.config import PretrainConfig
from pipelines.s5_pretrain.stage import plan_pretrain, pretrain_part
from pipelines.s5_pretrain.start import StartConfig, is_hub_name
from pipelines.s5_pretrain.start_weights import lay_down_start, started_model
from tests.support.models.backbones import small_bert, small_xlmr, text_folder
from tests.support.models.folders import tokenizer_of
from tests.support.training.corpus import DATA, MODEL, WORDS
from tests.support.training.pretrain_part import LocalInputs, Out, toy_inputs
from x2vlm import inference
from x2vlm.errors import ConfigError, CorruptArtifact, X2VLMError
from x2vlm.inference.pretrained import save_pretrained
from x2vlm.models.checkpoints.reference import export_reference_state, reference_names
from x2vlm.models.config import TextConfig
from x2vlm.models.x2vlm import build_model

XLM = TextConfig(
    architecture="xlm-roberta", width=32, num_layers=3, num_heads=2, intermediate=32, vocab_size=90, max_positions=40,
    type_vocab_size=1, pad_id=1, layer_norm_eps=1e-5,
)  # fmt: skip
MULTILINGUAL = MODEL.model_copy(update={"text": XLM, "tie_words": False})


def config_of(start, model=MODEL):
    values = {"model": model, "data": DATA, "start": start, "world_size": 1, "train": {"steps": 1, "warmup_steps": 0}}
    return PretrainConfig.model_validate(values)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(9)
    return build_model(MODEL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, teacher):
    """A reference file and a folder of one trained model, and an XLM-R of three layers."""
    root = tmp_path_factory.mktemp("starts")
    torch.save({"model": export_reference_state(teacher)}, root / "model.th")
    save_pretrained(teacher, root / "saved")
    text_folder(root / "xlmr", small_xlmr(hidden_size=32, max_position_embeddings=40))
    return root


def files_of(root, model=None, text=None):
    """As the engine hands them over: copies under other names than their own."""
    files = {"start_vision": {}, "start_text": {}, "start_model": {}}
    names = ("config.json", "model.safetensors")
    if text is not None:
        files["start_text"] = {name: root / text / name for name in names}
    if model is not None and model.endswith(".th"):
        copy = root / "0f3c"
        copy.write_bytes((root / model).read_bytes())
        files["start_model"] = {model: copy}
    elif model is not None:
        files["start_model"] = {name: root / model / name for name in names}
    return files


@pytest.mark.parametrize(
    ("start", "model", "origin"),
    [
        ({"checkpoint": "model.th", "swap_text": "xlmr"}, "model.th", "checkpoint"),
        ({"checkpoint": "saved", "swap_text": "xlmr"}, "saved", "checkpoint"),
        ({"node": "phase1", "swap_text": "xlmr"}, "saved", "node"),
    ],
    ids=["reference", "folder", "phase"],
)
def test_a_run_starts_from_a_checkpoint_with_another_text_encoder(folders, teacher, tmp_path, start, model, origin):
    """start.json names for each parameter an entry that its file has and that holds its value."""
    config = config_of(start, MULTILINGUAL)
    job = lay_down_start(config, files_of(folders, model, "xlmr"), str(tmp_path / "state"))
    report = json.loads((tmp_path / "state/start.json").read_text())
    is_reference = model.endswith(".th")
    given = export_reference_state(teacher) if is_reference else load_file(folders / "saved/model.safetensors")
    held = {origin: given, "swap_text": load_file(folders / "xlmr/model.safetensors")}
    built = build_model(MULTILINGUAL)
    ours = {theirs: name for name, theirs in reference_names(built).items()}
    weights = load_file(job["weights"])
    assert report["origins"].keys() == set(report["loaded"]) == set(ours) - set(report["missing"])
    for name, where in report["origins"].items():
        file, entry = where.split(": ")
        assert torch.equal(weights[ours[name]], held[file][entry]), name
    new = ["mlm_head.predictions.bias", "mlm_head.predictions.decoder.weight"]
    assert sorted(report["missing"]) == new == sorted(job["new"])
    transform = teacher.word_head.transform.weight
    assert torch.equal(weights["word_head.transform.weight"], transform)


def test_the_origins_of_a_checkpoint_are_its_entries(folders):
    for model, entry in (("model.th", "vision_encoder.cls_token"), ("saved", "vision.trunk.cls_token")):
        _, report = started_model(config_of({"checkpoint": model}), files_of(folders, model))
        assert report.origins["vision_encoder.cls_token"] == f"checkpoint: {entry}"
        words = "text_encoder.bert.embeddings.word_embeddings.weight"
        expected = words if model == "model.th" else "text.encoder.embeddings.word_embeddings.weight"
        assert report.origins[words] == f"checkpoint: {expected}"
        assert report.origins.keys() == set(report.loaded)


def test_weights_of_a_model_with_other_heads_are_refused(folders):
    """No shape tells the number of heads, and with another the same weights are another function."""
    for part in ("text", "fusion"):
        changed = getattr(MODEL, part).model_copy(update={"num_heads": 4})
        config = config_of({"checkpoint": "saved"}, MODEL.model_copy(update={part: changed}))
        with pytest.raises(ConfigError, match=rf"config\.json.*{part}\.num_heads is 2, pretrain\.model\.{part}\.num_h"):
            started_model(config, files_of(folders, "saved"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"swap_text": "xlmr"}, "give its `checkpoint` or `node` beside it"),
        ({"swap_text": "xlmr", "vision": "beit.pth"}, "give its `checkpoint` or `node` beside it"),
        ({"swap_text": "xlmr", "text": "bert", "checkpoint": "a.th"}, "is `swap_text`"),
        ({"text": "bert", "checkpoint": "a.th"}, "exactly one of these; a text encoder that replaces .* `swap_text`"),
        ({"text": "bert", "node": "phase1"}, "`swap_text`"),
        ({"swap_text": "xlmr", "checkpoint": "a.th", "node": "phase1"}, "exactly one"),
        ({"vision": "beit.pth", "node": "phase1"}, "exactly one"),
        ({"swap_text": "", "checkpoint": "a.th"}, "at least 1 character"),
        ({"text": ""}, "at least 1 character"),
        ({"checkpoint": f"owner/x2vlm@{'a' * 40}"}, "hub names are for vision, text and swap_text"),
    ],
)  # fmt: skip
def test_starts_that_contradict_themselves_are_refused_when_loaded(values, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        StartConfig(**values)


def test_an_xlm_r_alone_is_refused_when_loaded_since_it_fills_no_fusion_layers():
    with pytest.raises(pydantic.ValidationError, match=r"start\.text: .*xlm-roberta fills no fusion .*`swap_text`"):
        config_of({"text": "xlmr"}, MULTILINGUAL)


def test_a_swap_is_read_and_recorded_like_other_starts(folders):
    start = StartConfig(checkpoint=str(folders / "model.th"), swap_text=str(folders / "xlmr"))
    toy = load_experiment("sample")
    inputs = start_inputs(start, toy)
    assert [len(inputs[slot]) for slot in ("start_vision", "start_text", "start_model")] == [0, 2, 1]
    assert start.recorded() == StartConfig(checkpoint="local", swap_text="local")
    for name in (f"xlm-roberta-base@{'a' * 40}", f"FacebookAI/xlm-roberta-base@{'a' * 40}"):
        assert is_hub_name(name)
        of_hub = StartConfig(node="phase1", swap_text=name)
        assert start_inputs(of_hub, toy)["start_text"] == ()
        assert of_hub.recorded().swap_text == name
    with pytest.raises(ConfigError, match=r"start\.swap_text: .*nowhere is no folder of a transformers model"):
        start_inputs(StartConfig(node="phase1", swap_text=str(folders / "nowhere")), toy)


def test_a_hub_name_without_an_owner_gives_the_files_of_its_commit(monkeypatch, tmp_path, folders):
    commit = "c" * 40
    snapshot = tmp_path / "models--xlm-roberta-toy" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_bytes((folders / "xlmr" / name).read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = {"checkpoint": "model.th", "swap_text": f"xlm-roberta-toy@{commit}"}
    model, _ = started_model(config_of(start, MULTILINGUAL), files_of(folders, "model.th"))
    expected, _ = started_model(
        config_of({**start, "swap_text": "xlmr"}, MULTILINGUAL), files_of(folders, "model.th", "xlmr")
    )
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_multilingual_run_trains_from_its_start_and_its_folder_is_a_model(folders, tmp_path):
    """Checkpoint, text encoder and tokenizer.json given as an experiment does; one step; then what a user does."""
    tokenizer = tokenizer_of("xlm-roberta", tmp_path / "tokenizer")
    (tmp_path / "corpus").mkdir()
    inputs = toy_inputs(tmp_path / "corpus")
    content = (tmp_path / "tokenizer" / "tokenizer.json").read_text()
    # The engine may keep a file under its hash.
    (tmp_path / "a7e1").write_text(content)
    inputs |= {"vocabulary": local_input("vocabulary", {"tokenizer.json": tmp_path / "a7e1"})}
    files = files_of(folders, "model.th", "xlmr")
    inputs |= {slot: local_input(slot, named) for slot, named in files.items()}
    config = config_of({"checkpoint": "local", "swap_text": "local"}, MULTILINGUAL)
    out = Out(tmp_path / "out", str(tmp_path / "state"))
    out.path.mkdir()
    (part,) = plan_pretrain(config, inputs)
    result = pretrain_part(config, LocalInputs(), part, out)
    assert result.summary["start"]["num_missing"] == 2
    assert not (out.path / "vocab.txt").exists()
    assert (out.path / "tokenizer.json").read_text() == content
    before, after = load_file(tmp_path / "state/start.safetensors"), load_file(out.path / "model.safetensors")
    name = "text.encoder.encoder.layer.2.output.dense.weight"
    assert 0 < float((before[name] - after[name]).abs().max()) < 0.01
    pretrained = inference.load(out.path)
    assert len(pretrained.processor.tokenizer) == len(tokenizer)
    assert inference.embed_texts(pretrained, ["ein Hund", "a dog"]).shape == (2, 16)
    assert pq.read_table(out.path / "samples.parquet").num_rows > 0


def local_input(slot, files):
    def file_of(name, path):
        data = path.read_bytes()
        return InputFile(name, len(data), hashlib.sha256(data).hexdigest(), str(path))

    return tuple(
        Input(f"source:{slot}", "root", (InputPart(name, (file_of(name, path),)),)) for name, path in files.items()
    )


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize(
    ("start", "change", "message"),
    [
        ({"checkpoint": "model.th"}, lambda f: cut(f / "model.th"), r"model\.th \(.*0f3c\)"),
        ({"checkpoint": "model.th"}, lambda f: torch.save({"model": Bomb(f / "run")}, f / "model.th"), r"model\.th"),
        ({"checkpoint": "saved"}, lambda f: cut(f / "saved/model.safetensors"), r"saved/model\.safetensors"),
        ({"checkpoint": "saved"}, lambda f: (f / "saved/config.json").write_text("{"), r"saved/config\.json"),
        ({"checkpoint": "saved", "swap_text": "xlmr"}, lambda f: cut(f / "xlmr/model.safetensors"), "xlmr/model"),
        ({"text": "xlmr"}, lambda f: (f / "xlmr/config.json").write_text("[]"), r"xlmr/config\.json"),
        ({"text": "xlmr"}, lambda f: None, r"xlmr/model\.safetensors: .*model_type is 'xlm-roberta'"),
        (
            {"checkpoint": "model.th"},
            lambda f: torch.save({"model": {"vision_encoder.cls_token": torch.zeros(1, 1, 31)}}, f / "model.th"),
            r"start from model\.th \(.*vision_encoder\.cls_token has shape \(1, 1, 31\)",
        ),
    ],
    ids=["cut", "code", "cut_folder", "no_config", "cut_swap", "no_description", "other_text", "other_width"],
)  # fmt: skip
def test_broken_files_are_errors_of_ours_that_name_them(tmp_path, teacher, start, change, message):
    torch.save({"model": export_reference_state(teacher)}, tmp_path / "model.th")
    save_pretrained(teacher, tmp_path / "saved")
    text_folder(tmp_path / "xlmr", small_xlmr(hidden_size=32, max_position_embeddings=40))
    change(tmp_path)
    text = start.get("text") or start.get("swap_text")
    config = config_of(start, MULTILINGUAL if "swap_text" in start else MODEL)
    with pytest.raises(X2VLMError, match=message):
        started_model(config, files_of(tmp_path, start.get("checkpoint"), text))
    assert not (tmp_path / "run").exists()


def test_a_text_file_without_a_layer_is_refused_not_filled_in(tmp_path):
    """The word of docs/training.md: training refuses to start if a layer of a tower would stay random."""
    encoder = small_bert(num_layers=2, hidden_size=32, vocab_size=len(WORDS), max_position_embeddings=40)
    text_folder(tmp_path / "bert", encoder, lambda s: {k: v for k, v in s.items() if "layer.0.attention" not in k})
    with pytest.raises(ConfigError, match=r"10 entries of its encoder are missing: encoder\.layer\.0\.attention"):
        started_model(config_of({"text": "bert"}), files_of(tmp_path, text="bert"))


def test_a_checkpoint_that_went_away_is_named(tmp_path):
    files = {"start_model": {"model.th": tmp_path / "gone.th"}, "start_text": {}, "start_vision": {}}
    with pytest.raises(CorruptArtifact, match=r"model\.th \(.*gone\.th\): not a readable file"):
        started_model(config_of({"checkpoint": "model.th"}), files)
