"""The processor against transformers' own image processor and tokenizers, and folders that must be refused."""

import json

import pytest
import torch
from transformers import BertTokenizer, ViTImageProcessorPil

from tests.support.models.folders import CLIPS, PHOTOS, SAMPLE, small_pretrained, tokenizer_of, xlmr_tokenizer
from tests.support.naive_pixels import naive_pixels
from x2vlm.data.media.images import open_image
from x2vlm.errors import ConfigError, CorruptArtifact, InvalidSample
from x2vlm.inference.processor import ProcessorConfig, check_fit, load_processor, processor_for, save_processor

TEXTS = ["a dog", "two people on a street", "a picture of a dog", "ein hund", "o" * 30]


@pytest.fixture(params=["bert", "xlm-roberta"])
def pretrained(request, tmp_path):
    return small_pretrained(request.param, tmp_path / "tokenizer", 3)


@pytest.fixture
def folder(pretrained, tmp_path):
    save_processor(pretrained.processor, tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_processor_is_the_same_to_the_last_byte(pretrained, folder, tmp_path):
    loaded = load_processor(folder)
    assert loaded.config == pretrained.processor.config
    save_processor(loaded, tmp_path / "again")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert len(names) == 2
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert all(torch.equal(a, b) for a, b in zip(loaded.texts(TEXTS), pretrained.processor.texts(TEXTS), strict=True))
    clip = loaded.read(CLIPS[0])
    assert torch.equal(loaded.clips([clip]), pretrained.processor.clips([pretrained.processor.read(CLIPS[0])]))
    assert loaded.clips([clip]).shape == (1, 3, 3, 64, 64)


def test_transformers_reads_the_same_file_and_makes_the_same_pixels(pretrained, folder):
    images = [open_image(path.read_bytes()) for path in PHOTOS[:3]]
    theirs = ViTImageProcessorPil.from_pretrained(folder)(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pretrained.processor.images(images), theirs, atol=1e-6, rtol=0.0)


def test_pixels_are_the_published_ones_to_the_last_bit(pretrained):
    images = [open_image(path.read_bytes()) for path in PHOTOS[:3]]
    expected = torch.stack([naive_pixels(image, 64) for image in images])
    assert torch.equal(pretrained.processor.images(images), expected)


def test_ids_are_those_of_transformers(pretrained, folder):
    bert = pretrained.model.config.text.architecture == "bert"
    oracle = BertTokenizer(vocab=str(SAMPLE / "vocab.txt")) if bert else xlmr_tokenizer()
    theirs = oracle(TEXTS, padding=True, return_tensors="pt")
    ids, mask = load_processor(folder).texts(TEXTS)
    assert ids.shape[1] < 40  # none is cut
    assert torch.equal(ids, theirs["input_ids"])
    assert torch.equal(mask.long(), theirs["attention_mask"])


def test_long_texts_are_cut_with_their_end_token(pretrained):
    processor = pretrained.processor
    ids, mask = processor.texts(["a dog " * 40, "a dog"])
    longest = processor.config.max_tokens
    assert longest == {"bert": 40, "xlm-roberta": 38}[pretrained.model.config.text.architecture]
    assert ids.shape == (2, longest)
    assert ids[0, -1] == ids[1, mask[1].sum() - 1] == processor.tokenizer.sep_id
    assert (ids[1, mask[1].sum() :] == processor.tokenizer.pad_id).all()


def test_what_is_written_can_be_read_again(pretrained):
    processor = pretrained.processor
    ids = processor.tokenizer.encode("a picture of a dog", 40)
    assert processor.decode(ids) == "a picture of a dog"
    noise = [processor.tokenizer.mask_id, *ids, processor.tokenizer.pad_id, 10**6]
    assert processor.decode(noise) == "a picture of a dog"
    assert processor.decode([]) == ""


def test_word_pieces_are_joined_to_words(tmp_path):
    tokenizer = tokenizer_of("bert", tmp_path)
    ids = tokenizer.encode("streetlight dogs", 40)
    assert any(entry.startswith("##") for entry in tokenizer.tokens(ids))
    assert tokenizer.decode(ids) == "streetlight dogs"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean is"),
        ({"resample": 2}, "resample is 2"),
        ({"size": {"height": 8, "width": 8}}, "size is"),
        ({"x2vlm": {"image_res": 64, "max_token": 40}}, "did you mean `max_tokens`"),
        ({"x2vlm": {"image_res": 0}}, "image_res"),
        ({"x2vlm": None}, "no key `x2vlm`"),
    ],
)
def test_a_config_that_asks_for_something_else_is_refused(folder, change, message):
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        load_processor(folder)


def test_broken_files_are_refused_by_name(pretrained, folder):
    (vocabulary,) = [path for path in folder.iterdir() if path.name != "preprocessor_config.json"]
    content = vocabulary.read_bytes()
    vocabulary.write_bytes(content.replace(b"dog", b"cow", 1))
    with pytest.raises(CorruptArtifact, match=f"{vocabulary.name}.*another vocabulary"):
        load_processor(folder)
    vocabulary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=vocabulary.name):
        load_processor(folder)
    vocabulary.unlink()
    with pytest.raises(ConfigError, match=vocabulary.name):
        load_processor(folder)
    (folder / "preprocessor_config.json").write_text("[")
    with pytest.raises(ConfigError, match="not readable JSON"):
        load_processor(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match="save the model again"):
        load_processor(folder)


def test_a_processor_of_another_model_is_refused_with_both_numbers(pretrained):
    model, tokenizer = pretrained.model.config, pretrained.processor.tokenizer
    text, vision = model.text, model.vision
    changes = {
        "the model only 7": model.model_copy(update={"text": text.model_copy(update={"vocab_size": 7})}),
        "expects 9": model.model_copy(update={"text": text.model_copy(update={"pad_id": 9})}),
        "the model takes 96": model.model_copy(update={"vision": vision.model_copy(update={"image_res": 96})}),
        "has 2 positions": model.model_copy(update={"num_frames": 2}),
        "needs the other kind": model.model_copy(
            update={"text": text.model_copy(update={"architecture": "bert" if tokenizer.pad_id else "xlm-roberta"})}
        ),
    }
    check_fit(model, pretrained.processor, "here")
    for message, config in changes.items():
        with pytest.raises(ConfigError, match=f"here: does not fit the model:.*{message}"):
            check_fit(config, pretrained.processor, "here")
    with pytest.raises(ConfigError, match="max_tokens is 41"):
        processor_for(model, tokenizer, max_tokens=41)
    with pytest.raises(ConfigError, match="did you mean `max_tokens`"):
        processor_for(model, tokenizer, max_token=12)


def test_texts_of_nothing_are_named(pretrained):
    with pytest.raises(InvalidSample, match=r"'\.\.\.'"):
        pretrained.processor.texts(["a dog", "..."])
    with pytest.raises(InvalidSample, match="NoneType"):
        pretrained.processor.texts([None])
    ids, mask = pretrained.processor.texts([])
    assert ids.shape == mask.shape == (0, 0)


def test_the_defaults_are_those_of_the_released_evaluation():
    config = ProcessorConfig(image_res=224)
    assert (config.max_tokens, config.frames_per_clip, config.frames_per_second) == (40, 3, 1.0)
