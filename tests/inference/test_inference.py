"""The helpers against the model called by hand, one image and one text at a time."""

import io
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.models.folders import CLIPS, PHOTOS, SAMPLE, counting, save_folder, small_pretrained
from tests.support.naive_pixels import naive_pixels
from x2vlm import inference
from x2vlm.data.loading.frames import choose_frames
from x2vlm.data.media.images import open_image
from x2vlm.data.media.video import sample_clip
from x2vlm.errors import ConfigError, InvalidSample, SourceUnavailable
from x2vlm.inference.api import CAPTION, Pretrained, Ranked
from x2vlm.models.generate import GenerateConfig, generate

TEXTS = ["a dog", "A bus, seen from the street!", "two people", "a red bus on a street", "o"]
SOURCES = [PHOTOS[0], CLIPS[0], PHOTOS[1], PHOTOS[2], CLIPS[1]]
CLOSE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module", params=[("bert", None), ("bert", 3), ("xlm-roberta", 3)], ids=["bert", "video", "xlmr"])
def pretrained(request, tmp_path_factory) -> Pretrained:
    return small_pretrained(request.param[0], tmp_path_factory.mktemp("model"), request.param[1])


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Pretrained:
    return small_pretrained("bert", tmp_path_factory.mktemp("model"), 3)


@pytest.fixture(scope="module")
def visuals(bert):
    """The sources, read once: decoding clips costs more than these models do."""
    return [bert.processor.read(source) for source in SOURCES]


def by_hand(pretrained, source):
    """Tokens of one image or clip, by way of the functions that training uses and of pixels made by hand."""
    data, model = source.read_bytes(), pretrained.model
    if source in CLIPS:
        frames = sample_clip(data, frames_per_second=1.0).frames
        chosen = choose_frames(len(frames), 3)
        return model.encode_video(torch.stack([naive_pixels(frames[number], 64) for number in chosen])[None])
    return model.encode_image(naive_pixels(open_image(data), 64)[None])


def text_by_hand(pretrained, text):
    cleaned = text.lower().replace(",", "").replace("!", "")
    ids = torch.tensor([pretrained.processor.tokenizer.encode(cleaned, 40)])
    mask = torch.ones_like(ids, dtype=torch.bool)
    return pretrained.model.encode_text(ids, mask), mask


@torch.no_grad()
def test_features_are_those_of_the_model(pretrained, visuals):
    images = inference.embed_images(pretrained, visuals)
    texts = inference.embed_texts(pretrained, TEXTS)
    for row, source in zip(images, SOURCES, strict=True):
        torch.testing.assert_close(row, pretrained.model.project_vision(by_hand(pretrained, source))[0], **CLOSE)
    for row, text in zip(texts, TEXTS, strict=True):
        expected = pretrained.model.project_text(text_by_hand(pretrained, text)[0])[0]
        torch.testing.assert_close(row, expected, **CLOSE)
    distance = torch.cdist(images, images) + torch.eye(len(SOURCES))
    assert distance.min() > 1e-3  # else every comparison here would pass for rows in any order


def test_batch_size_and_order_change_nothing(pretrained, visuals):
    order = [3, 0, 4, 2, 1]
    images, texts = inference.embed_images(pretrained, visuals), inference.embed_texts(pretrained, TEXTS)
    probabilities = inference.match(pretrained, visuals, TEXTS)
    captions = inference.caption(pretrained, visuals, GenerateConfig(max_tokens=6, min_tokens=5, num_beams=2))
    assert len(set(captions)) > 1
    mixed, mixed_texts = [visuals[number] for number in order], [TEXTS[number] for number in order]
    for size in (1, 2, 7):
        found = inference.embed_images(pretrained, mixed, size)
        torch.testing.assert_close(found, images[order], **CLOSE)
        torch.testing.assert_close(inference.embed_texts(pretrained, mixed_texts, size), texts[order], **CLOSE)
        again = inference.match(pretrained, mixed, mixed_texts, size)
        torch.testing.assert_close(again, probabilities[order], **CLOSE)
        config = GenerateConfig(max_tokens=6, min_tokens=5, num_beams=2)
        assert inference.caption(pretrained, mixed, config, batch_size=size) == [captions[number] for number in order]


@torch.no_grad()
def test_matching_is_the_head_on_the_pair(pretrained, visuals):
    found = inference.match(pretrained, visuals, TEXTS)
    for probability, source, text in zip(found, SOURCES, TEXTS, strict=True):
        states, mask = text_by_hand(pretrained, text)
        logits = pretrained.model.match(pretrained.model.fuse(states, mask, by_hand(pretrained, source)))
        torch.testing.assert_close(probability, logits.softmax(dim=-1)[0, 1], **CLOSE)
    with pytest.raises(InvalidSample, match="5 images, 1 texts"):
        inference.match(pretrained, visuals, ["a dog"])


@torch.no_grad()
@pytest.mark.parametrize("shortlist", [0, 2, 99])
def test_ranking_is_a_shortlist_by_cosine_reordered_by_matching(pretrained, visuals, shortlist):
    hand = [by_hand(pretrained, source) for source in SOURCES]
    states = [text_by_hand(pretrained, text) for text in TEXTS]
    cosine = torch.stack(
        [torch.cat([pretrained.model.project_vision(v) @ pretrained.model.project_text(s).T for s, _ in states], 1)[0]
         for v in hand]
    )  # fmt: skip
    logit = torch.stack(
        [torch.cat([pretrained.model.match(pretrained.model.fuse(s, m, v))[:, 1] for s, m in states]) for v in hand]
    )
    images = inference.rank_images(pretrained, TEXTS[3], visuals, shortlist, batch_size=2)
    check_ranking(images, cosine[:, 3], logit[:, 3], shortlist)
    texts = inference.rank_texts(pretrained, visuals[1], TEXTS, shortlist, batch_size=2)
    check_ranking(texts, cosine[1], logit[1], shortlist)


def check_ranking(found: list[Ranked], cosine, logit, shortlist):
    by_cosine = sorted(range(len(cosine)), key=lambda number: -cosine[number])
    first, rest = by_cosine[:shortlist], by_cosine[shortlist:]
    assert [item.index for item in found] == [*sorted(first, key=lambda number: -logit[number]), *rest]
    for item in found:
        assert item.similarity == pytest.approx(float(cosine[item.index]), abs=1e-5)
        scored = item.index in first
        assert item.match_logit == (pytest.approx(float(logit[item.index]), abs=1e-4) if scored else None)


@torch.no_grad()
def test_boxes_are_in_pixels_of_the_upright_original_and_the_image_is_encoded_once(pretrained):
    with counting(pretrained.model.vision) as passes:
        found = inference.ground(pretrained, PHOTOS[0], TEXTS, batch_size=2)
    assert passes == [1]
    width, height = open_image(PHOTOS[0].read_bytes()).size
    assert width != height
    for item, text in zip(found, TEXTS, strict=True):
        states, mask = text_by_hand(pretrained, text)
        fused = pretrained.model.fuse(states, mask, by_hand(pretrained, PHOTOS[0]))
        cx, cy, w, h = pretrained.model.locate(fused)[0].double().tolist()
        left, right = max(0.0, cx - w / 2) * width, min(1.0, cx + w / 2) * width
        top, bottom = max(0.0, cy - h / 2) * height, min(1.0, cy + h / 2) * height
        assert item.phrase == text
        box = (item.box.x, item.box.y, item.box.w, item.box.h)
        assert box == pytest.approx((left, top, right - left, bottom - top), abs=1e-2)
        probability = pretrained.model.match(fused).softmax(dim=-1)[0, 1].item()
        assert item.match_probability == pytest.approx(probability, abs=1e-5)


def test_a_turned_photo_is_grounded_as_it_is_seen(bert, tmp_path):
    photo = open_image(PHOTOS[0].read_bytes())
    upright, turned = tmp_path / "upright.png", tmp_path / "turned.png"
    photo.save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    photo.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    assert inference.ground(bert, turned, ["a dog"]) == inference.ground(bert, upright, ["a dog"])
    with Image.open(turned) as opened:
        assert opened.size != photo.size
        assert inference.ground(bert, opened, ["a dog"]) == inference.ground(bert, upright, ["a dog"])


@torch.no_grad()
def test_captions_are_what_the_search_writes_after_the_prompt(pretrained):
    ids = pretrained.processor.prompt("a picture of")
    tokenizer = pretrained.processor.tokenizer
    architecture = pretrained.model.config.text.architecture
    assert ids[0] == tokenizer.cls_id
    assert tokenizer.decode(ids) == "a picture of"
    assert tokenizer.sep_id not in ids
    max_new_tokens = (38 if architecture == "xlm-roberta" else 40) - len(ids)
    config = CAPTION.model_copy(update={"max_tokens": max_new_tokens})
    for source in SOURCES[:2]:
        vision = by_hand(pretrained, source)
        (written,) = generate(pretrained.model, vision, ids, tokenizer.mask_id, tokenizer.sep_id, config)
        assert inference.caption(pretrained, [source]) == [tokenizer.decode(written.tokens)]
        assert len(written.tokens) >= 5
    with pytest.raises(ValueError, match="positions"):
        inference.caption(pretrained, [PHOTOS[0]], CAPTION)


def test_paths_bytes_and_images_are_the_same_source(bert):
    data = PHOTOS[0].read_bytes()
    opened = Image.open(io.BytesIO(data))
    rows = inference.embed_images(bert, [PHOTOS[0], str(PHOTOS[0]), data, opened, open_image(data)])
    assert all(torch.equal(row, rows[0]) or torch.allclose(row, rows[0], atol=1e-6) for row in rows)


def test_nothing_given_gives_nothing(bert):
    assert inference.embed_images(bert, []).shape == (0, 16)
    assert inference.embed_texts(bert, []).shape == (0, 16)
    assert inference.match(bert, [], []).shape == (0,)
    assert inference.rank_images(bert, "a dog", []) == []
    assert inference.rank_texts(bert, PHOTOS[0], []) == []
    assert inference.ground(bert, PHOTOS[0], []) == []
    assert inference.caption(bert, []) == []


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_folders_skip_bad_files_by_name(bert, tmp_path, batch_size):
    (tmp_path / "inner").mkdir()
    for number, photo in enumerate(PHOTOS[:4]):
        shutil.copy(photo, tmp_path / ("inner" if number % 2 else ".") / photo.name)
    for bad in ("empty.jpg", "page.jpg", "truncated.jpg", "bomb.png", "corrupt.mp4"):
        shutil.copy(SAMPLE / "media" / "bad" / bad, tmp_path / bad)
    (tmp_path / ".hidden").write_text("not looked at")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = inference.embed_folder(bert, tmp_path, batch_size)
    names = sorted([PHOTOS[0].name, f"inner/{PHOTOS[1].name}", PHOTOS[2].name, f"inner/{PHOTOS[3].name}"])
    assert list(found.names) == names
    expected = inference.embed_images(bert, [tmp_path / name for name in names])
    torch.testing.assert_close(found.features_BE, expected, **CLOSE)
    rules = {item.name: item.rule for item in found.skipped}
    assert rules == {
        "bomb.png": "too_many_pixels",
        "corrupt.mp4": "decode_failed",
        "empty.jpg": "empty_body",
        "gone.jpg": "unreadable",
        "page.jpg": "not_media",
        "truncated.jpg": "decode_failed",
    }
    with pytest.raises(SourceUnavailable, match="no such folder"):
        inference.embed_folder(bert, tmp_path / "nowhere")


def test_what_cannot_be_used_is_named(bert, tmp_path):
    with pytest.raises(InvalidSample, match=r"page\.jpg: starts with"):
        inference.embed_images(bert, [PHOTOS[0], SAMPLE / "media" / "bad" / "page.jpg"])
    with pytest.raises(InvalidSample, match="addresses are not fetched"):
        inference.embed_images(bert, ["https://example.invalid/a.jpg"])
    with pytest.raises(InvalidSample, match="put it into a list"):
        inference.embed_texts(bert, "a dog")
    with pytest.raises(InvalidSample, match="put it into a list"):
        inference.caption(bert, PHOTOS[0])
    with pytest.raises(InvalidSample, match=r"'\?!'"):
        inference.embed_texts(bert, ["a dog", "?!"])
    with pytest.raises(InvalidSample, match="clip_not_grounded"):
        inference.ground(bert, CLIPS[0], ["a dog"])
    with pytest.raises(ValueError, match="batch_size"):
        inference.embed_texts(bert, ["a dog"], batch_size=0)
    with pytest.raises(ValueError, match="batch_size"):
        inference.embed_folder(bert, tmp_path, batch_size=0)


def test_a_loaded_folder_gives_the_very_same_numbers(pretrained, visuals, tmp_path):
    loaded = inference.load(save_folder(pretrained, tmp_path))
    assert loaded.processor.config == pretrained.processor.config
    assert torch.equal(inference.embed_images(loaded, visuals), inference.embed_images(pretrained, visuals))
    assert torch.equal(inference.embed_texts(loaded, TEXTS), inference.embed_texts(pretrained, TEXTS))
    assert inference.ground(loaded, visuals[0], TEXTS) == inference.ground(pretrained, visuals[0], TEXTS)
    for ours, other in zip(loaded.processor.texts(TEXTS), pretrained.processor.texts(TEXTS), strict=True):
        assert torch.equal(ours, other)
    images = [visual.frames[0] for visual in visuals]
    assert torch.equal(loaded.processor.images(images), pretrained.processor.images(images))


def test_half_precision_runs_and_is_near(bert, visuals, tmp_path):
    half = inference.load(save_folder(bert, tmp_path), device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    features = inference.embed_images(half, visuals)
    assert features.dtype == torch.float32
    assert not torch.equal(features, inference.embed_images(bert, visuals))
    cosine = (features * inference.embed_images(bert, visuals)).sum(dim=-1)
    assert cosine.min() > 0.99  # bfloat16 keeps 8 bits
    assert len(inference.rank_images(half, "a dog", visuals, shortlist=3)) == len(SOURCES)
    assert len(inference.rank_texts(half, visuals[0], TEXTS, shortlist=3)) == len(TEXTS)
    assert inference.ground(half, visuals[0], ["a dog"])[0].box.w > 0
    assert inference.caption(half, visuals[:2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(bert, visuals, tmp_path):
    there = inference.load(save_folder(bert, tmp_path), device="cuda")
    close = {"atol": 1e-3, "rtol": 0.0}  # TensorFloat-32
    torch.testing.assert_close(inference.embed_images(there, visuals), inference.embed_images(bert, visuals), **close)
    assert inference.caption(there, visuals[:1])


def test_gradients_are_never_recorded(bert, visuals):
    seen = []
    handle = bert.model.vision.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    inference.embed_images(bert, visuals[:1])
    inference.ground(bert, visuals[0], ["a dog"])
    inference.caption(bert, visuals[:1])
    inference.rank_images(bert, "a dog", visuals[:2])
    handle.remove()
    assert seen
    assert all(seen)


def test_folders_that_do_not_fit_are_refused(bert, tmp_path):
    folder = save_folder(bert, tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json: no such file.*save_pretrained"):
        inference.load(folder)


@pytest.mark.parametrize("single", ["photo.jpg", PHOTOS[0], b"bytes", None, 3])
def test_a_single_source_is_not_a_list(bert, single):
    with pytest.raises(InvalidSample, match="not_a_list"):
        inference.embed_images(bert, single)


def test_arrays_are_single_images_and_batches_of_four_dimensions_are_lists(bert):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 40, 30, 3), dtype=np.uint8)
    rows = inference.embed_images(bert, [Image.fromarray(image) for image in pixels])
    torch.testing.assert_close(inference.embed_images(bert, pixels), rows, **CLOSE)
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    torch.testing.assert_close(inference.embed_images(bert, tensor), rows, **CLOSE)
    torch.testing.assert_close(
        inference.match(bert, tensor, ["a dog"] * 3), inference.match(bert, pixels, ["a dog"] * 3)
    )
    for single in (pixels[0], tensor[0], Image.fromarray(pixels[0]), io.BytesIO(b"")):
        with pytest.raises(InvalidSample, match="not_a_list"):
            inference.embed_images(bert, single)


def test_features_in_half_precision_have_length_one(tmp_path):
    folder = save_folder(small_pretrained("bert", tmp_path / "made"), tmp_path / "model")
    loaded = inference.load(folder, dtype=torch.bfloat16)
    images, texts = inference.embed_images(loaded, PHOTOS), inference.embed_texts(loaded, TEXTS)
    for features in (images, texts):
        assert features.dtype == torch.float32
        assert (features.norm(dim=1) - 1).abs().max() < 1e-3
    exact = inference.embed_images(inference.load(folder), PHOTOS)
    assert ((images * exact).sum(dim=1) > 0.99).all()
    ranked = inference.rank_images(loaded, TEXTS[0], PHOTOS[:3])
    assert all(abs(item.similarity) <= 1 + 1e-3 for item in ranked)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_a_text_of_unknown_words_alone_warns(kind, tmp_path):
    model = small_pretrained(kind, tmp_path)
    for unknown in ("猫猫猫", "Ж Ж"):
        with pytest.warns(UserWarning, match="no word of it is in the vocabulary"):
            inference.embed_texts(model, ["a dog", unknown])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.embed_texts(model, ["a dog", "a 猫"])
