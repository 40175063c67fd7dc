"""Every planted thing is what the truth calls it, and nothing else is: judged from the upstream files and media alone.

Small worlds are looked at by default, 20,000 scenes with media in the slow proofs.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.corpora.world.build import build_world
from pipelines.corpora.world.config import CLIP_SOURCES, DERIVED, SOURCES, NoiseRates, WorldConfig
from tests.corpora.world.upstream import HOST, UpstreamFacts, read_upstream
from tests.support.corpora.world import World

WITH_TINY_BOXES = ("coco", "visual_genome", "objects365", "openimages")
CLEAN = "clean"
PHASH_DISTANCE = 6  # of 64 bits, what near-duplicate searches commonly allow


@dataclass(frozen=True)
class Evidence:
    """All that is known about one source: the truth's rows, and what the files say."""

    out: Path
    source: str
    truth: list[dict[str, Any]]
    told: dict[str, UpstreamFacts]
    scenes: dict[int, dict[str, Any]]

    @cached_property
    def noise_of_row(self) -> dict[str, str]:
        return {row["row_key"]: row["planted"] for row in self.truth if row["unit"] == "row"}

    @cached_property
    def details(self) -> dict[str, str]:
        return {row["row_key"]: row["detail"] for row in self.truth if row["unit"] == "row"}

    @cached_property
    def scene_of(self) -> dict[str, int]:
        return {row["row_key"]: row["scene"] for row in self.truth}

    def file(self, row_key: str) -> Path:
        return self.out / "media" / self.told[row_key].url.removeprefix(HOST)

    def size(self, row_key: str) -> tuple[int, int]:
        """Width and height of the image; of a dead link what the files or, failing that, its scene says."""
        if self.file(row_key).is_file():
            with Image.open(self.file(row_key)) as image:
                return image.size
        scene = self.scenes[self.scene_of[row_key]]
        return self.told[row_key].size or (scene["width"], scene["height"])


def evidence(out: Path, source: str, scenes: dict[int, dict[str, Any]]) -> Evidence:
    truth = pq.read_table(out / "truth.parquet", filters=[("source", "=", source)]).to_pylist()
    return Evidence(out, source, truth, read_upstream(out, source), scenes)


def check_rows(found: Evidence) -> Counter[str]:
    """Each kind of row-level noise is there where the truth says so and nowhere else; how often each kind was seen."""
    seen: Counter[str] = Counter()
    assert set(found.noise_of_row) == set(found.told)
    for row in found.truth:
        if row["unit"] != "row":
            continue
        key, planted, told = row["row_key"], row["planted"], found.told[row["row_key"]]
        seen[planted or CLEAN] += 1
        where = f"{found.source} {key} {planted!r} {row['detail']!r}"
        assert found.file(key).is_file() == (planted != "dead_link"), where
        music = bool(told.texts) and told.texts == ["[Music]"]
        words = [len(text.split()) for text in told.texts]
        if found.source in CLIP_SOURCES:
            assert (planted == "one_word_text") == (music or (words == [1] and found.source == "webvid")), where
            late = told.duration is not None and told.begins is not None and told.begins >= told.duration - 1
            assert (planted == "late_speech") == late, where
        else:
            short, long = sorted(found.size(key))
            assert (planted == "small_image") == (short < 224 and planted not in ("duplicate", "test_leak")), where
            assert (planted == "extreme_aspect") == (long > 3 * short), where
            if planted in ("small_image", "extreme_aspect"):
                assert row["detail"] == "{} x {}".format(*found.size(key)), where
        assert (planted == "empty_text") == (told.texts == [""]), where
        assert (planted == "rotated") == (told.rotation not in ("", "0", "0.0")), where
        if told.size is not None and found.file(key).is_file():
            assert told.size == found.size(key), where
    return seen


def check_boxes(found: Evidence) -> Counter[str]:
    """Boxes are tiny, invalid, of crowds or of depictions where the truth says so and nowhere else."""
    seen: Counter[str] = Counter()
    sizes = {key: found.size(key) for key in found.told}
    concepts = [row for row in found.truth if row["unit"] == "concept" and not row["item"].startswith("vrd:")]
    assert len(concepts) == sum(len(told.boxes) for told in found.told.values())
    for row in concepts:
        told, (width, height) = found.told[row["row_key"]], sizes[row["row_key"]]
        x, y, w, h = told.boxes[row["item"]]
        if told.relative:
            x, y, w, h = (round(side * edge, 4) for side, edge in zip((x, y, w, h), (width, height) * 2, strict=True))
        where = f"{found.source} {row['row_key']} {row['item']} {row['planted']!r}: {(x, y, w, h)} in {(width, height)}"
        invalid = x < 0 or y < 0 or w <= 0 or h <= 0 or x + w > width + 1e-3 or y + h > height + 1e-3
        assert invalid == (row["planted"] == "invalid_box"), where
        tiny = not invalid and (w * 224 / width) * (h * 224 / height) < 16 * 16
        assert tiny == (row["planted"] == "tiny_box"), where
        flag = {"crowd_box": "crowd", "depiction_box": "depiction"}.get(row["planted"], "")
        assert told.flags.get(row["item"], "") == flag, where
        seen[row["planted"] or CLEAN] += 1
    return seen


def check_regions(found: Evidence) -> Counter[str]:
    """Phrases that share more than three quarters of their words with one that stays are the planted repeats."""
    seen: Counter[str] = Counter()
    planted: dict[str, set[str]] = {key: set() for key in found.told}
    bad: set[tuple[str, str]] = set()
    for row in found.truth:
        if row["unit"] == "concept" and row["planted"] == "near_duplicate_region":
            planted[row["row_key"]].add(row["item"])
        elif row["unit"] == "concept" and row["planted"]:
            bad.add((row["row_key"], row["item"]))
    for key, told in found.told.items():
        kept: list[Counter[str]] = []
        repeats = set()
        areas = {item: told.boxes[item][2] * told.boxes[item][3] for item in told.phrases}
        for item in sorted((one for one in told.phrases if (key, one) not in bad), key=lambda one: -areas[one]):
            words = Counter(re.findall(r"\w+", told.phrases[item].lower()))
            if any((words & other).total() > 0.75 * min(words.total(), other.total()) for other in kept):
                repeats.add(item)
            else:
                kept.append(words)
        assert repeats == planted[key], f"{found.source} {key}: {sorted(repeats ^ planted[key])}"
        seen["near_duplicate_region"] += len(repeats)
        seen[CLEAN] += len(kept)
    return seen


def load_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def phash(pixels: np.ndarray) -> int:
    """64 bits: which of the lowest 8 x 8 frequencies of the grey 32 x 32 image are above their median."""
    grey = Image.fromarray(pixels.astype(np.uint8)).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    steps = np.arange(32)
    cosines = np.cos(np.pi * np.outer(np.arange(8), 2 * steps + 1) / 64)
    low = (cosines @ np.asarray(grey, dtype=float) @ cosines.T).ravel()
    return int("".join("01"[int(one)] for one in low > np.median(low)), 2)


def check_repeats(found: Evidence, held_out: set[str]) -> Counter[str]:
    """A duplicate shows a training image and a leak a held-out one, and the named method is the weakest to see it."""
    seen: Counter[str] = Counter()
    for row in found.truth:
        if row["unit"] != "media":
            continue
        variant, origin, source = re.fullmatch(r"(\w+) of scene (\d+) \((\w+)\)", row["detail"]).groups()  # type: ignore[union-attr]
        name = f"{100_000 + int(origin):012d}.jpg"
        leak = row["planted"] == "test_leak"
        assert leak == (source == "evaluation") == (f"COCO_val2014_{name}" in held_out)
        copy = found.file(row["row_key"])
        first = found.out / "media" / "images" / (f"COCO_val2014_{name}" if leak else name)
        same = hashlib.sha256(copy.read_bytes()).digest() == hashlib.sha256(first.read_bytes()).digest()
        one, other = load_pixels(copy), load_pixels(first)
        near = (phash(one) ^ phash(other)).bit_count() <= PHASH_DISTANCE
        where = f"{found.source} {row['row_key']} {row['detail']}"
        assert row["expected_stage"] == ("decontaminate" if leak else "deduplicate"), where
        match row["expected_rule"]:
            case "sha256":
                assert same, where
            case "phash":
                assert not same, where
                assert near, where
            case "embedding":
                assert not same, where
                height, width, _ = other.shape
                if variant == "flipped":
                    undone = other[:, ::-1]
                    seen["flipped, seen by phash"] += near
                else:
                    undone = other[height // 40 : height - height // 40, width // 40 : width - width // 40]
                    seen["cropped, seen by phash"] += near
                assert one.shape == undone.shape, where
                assert np.abs(one - undone).mean() < 8, where
            case rule:
                raise AssertionError(f"{where}: {rule}")
        seen[f"{row['planted']} {variant}"] += 1
    return seen


COLOURS = "red|orange|yellow|green|blue|purple|pink|brown|black|white"
SHAPES = (
    "circle|square|triangle|pentagon|hexagon|star|diamond|cross|heart|crescent|ring|arrow|semicircle"  # and plurals
)
NAMED = rf"\b({COLOURS}) ({SHAPES})(?:e?s)?\b"
ENGLISH = rf"\b(an?|the|there|that|(?:{SHAPES})(?:e?s)?)\b"
LANGUAGE_SIGNS: dict[str, Callable[[str], bool]] = {
    "en": lambda text: bool(re.search(ENGLISH, text, re.I)) and text.isascii(),
    "de": lambda text: bool(re.search(r"\b(ein|eine|einem|einer) \w+(er|e|es|en) ", text)),
    "fr": lambda text: bool(re.search(r"\bune? \w", text)),
    "cs": lambda text: bool(re.search(r"\w+(ý|á|é|ým|ou|ého) \w+(ý|á|é|ým|ou|ého) \w", text)),
    "zh": lambda text: bool(re.search("[\u4e00-\u9fff]", text)) and not kana(text) and "个" in text,
    "ja": lambda text: kana(text),
}


def kana(text: str) -> bool:
    return any("KATAKANA" in unicodedata.name(char, "") or "HIRAGANA" in unicodedata.name(char, "") for char in text)


def check_texts(found: Evidence) -> Counter[str]:
    """Texts are in the language that the truth says; those in a mismatched one name no thing of their own image."""
    seen: Counter[str] = Counter()
    for row in found.truth:
        if row["unit"] != "caption":
            continue
        text = found.told[row["row_key"]].texts[int(row["item"])]
        language = row["detail"].removeprefix("language ") if row["detail"].startswith("language ") else "en"
        assert LANGUAGE_SIGNS[language](text), f"{found.source} {row['row_key']}: {language} {text!r}"
        if row["planted"] == "foreign_text":
            assert language != "en"
            assert not LANGUAGE_SIGNS["en"](text) or language in ("fr", "cs", "de")
        named = {(colour, shape) for colour, shape in re.findall(NAMED, text.lower())} if language == "en" else set()
        shown = shown_scene(found, row)
        there = {(thing["colour"], thing["shape"]) for thing in found.scenes[shown]["things"]}
        if row["planted"] == "mismatched_caption":
            assert not named & there, f"{found.source} {row['row_key']}: {text!r}"
        else:
            assert named <= there, f"{found.source} {row['row_key']}: {text!r}"
        seen[f"{row['planted'] or CLEAN}"] += 1
        seen["names a thing"] += bool(named)
    return seen


def shown_scene(found: Evidence, row: dict[str, Any]) -> int:
    """The scene that the image of a row shows: a repeat shows another than its own."""
    repeated = re.search(r"of scene (\d+)", found.details[row["row_key"]])
    return int(repeated[1]) if repeated else row["scene"]


def held_out_names(out: Path) -> set[str]:
    images = json.loads((out / "evaluation/coco_karpathy/dataset_coco.json").read_text())["images"]
    return {image["filename"] for image in images if image["split"] in ("val", "test")}


def check_rates(found: Evidence, rates: NoiseRates) -> None:
    """Planted things are as many as the rates say, within five standard deviations."""
    by_scene = {row["scene"]: row["planted"] for row in found.truth if row["unit"] == "row"}
    rows = Counter(by_scene.values())
    clip = found.source in CLIP_SOURCES
    kinds = {"dead_link"} if found.source == "webvid" else set()
    kinds |= set() if clip else {"dead_link", "small_image", "extreme_aspect", "duplicate", "test_leak"}
    if found.source in ("sbu", "cc3m", "cc12m", "laion_en", "laion_multi", "webvid"):
        kinds |= {"empty_text", "mismatched_caption"}
    kinds |= {"laion_en": {"foreign_text"}, "openimages": {"rotated"}, "webvid": {"one_word_text"}}.get(
        found.source, set()
    )
    for kind in kinds:
        assert_rate(f"{found.source} {kind}", rows[kind], len(by_scene), getattr(rates, kind))
    concepts = Counter(row["planted"] for row in found.truth if row["unit"] == "concept")
    images = len(by_scene)
    per_image = {"tiny_box", "invalid_box"} if found.source in WITH_TINY_BOXES else set()
    per_image |= {"coco": {"crowd_box"}, "openimages": {"crowd_box", "depiction_box"}}.get(found.source, set())
    per_image |= {"near_duplicate_region"} if found.source == "visual_genome" else set()
    for kind in per_image:
        # Visual Genome draws bad boxes twice an image: for regions and for objects.
        trials = images * (2 if found.source == "visual_genome" and kind.endswith("_box") else 1)
        assert_rate(f"{found.source} {kind}", concepts[kind], trials, getattr(rates, kind))


def assert_rate(what: str, found: int, trials: int, rate: float) -> None:
    spread = 5 * (trials * rate * (1 - rate)) ** 0.5
    assert abs(found - trials * rate) <= spread + 1, f"{what}: {found} of {trials}, {rate} expected"


def check_world(out: Path, config: WorldConfig) -> Counter[str]:
    """Look at everything of a world with media; how often each kind was seen."""
    scenes = {row["scene"]: row for row in pq.read_table(out / "truth_scenes.parquet").to_pylist()}
    held_out, seen = held_out_names(out), Counter[str]()
    for source in SOURCES:
        found = evidence(out, source, scenes)
        seen += check_rows(found) + check_texts(found) + check_repeats(found, held_out)
        if any(told.boxes for told in found.told.values()):
            seen += check_boxes(found)
        if any(told.phrases for told in found.told.values()):
            seen += check_regions(found)
        if source not in DERIVED:
            check_rates(found, config.noise)
    return seen


KINDS = {*NoiseRates.model_fields} - {"duplicate", "test_leak"} | {"late_speech"}


def test_a_small_world_is_what_its_truth_says(noisy_world: World) -> None:
    seen = check_world(noisy_world.out, noisy_world.config)
    assert {kind for kind in KINDS if not seen[kind]} <= {"late_speech"}
    assert sum(seen[kind] for kind in seen if kind.startswith(("duplicate ", "test_leak "))) > 10


@pytest.mark.slow
def test_twenty_thousand_scenes_are_what_their_truth_says(tmp_path: Path) -> None:
    config = WorldConfig(scenes=20_000)
    build_world(config, tmp_path / "world", workers=2)
    seen = check_world(tmp_path / "world", config)
    assert not [kind for kind in KINDS if not seen[kind]]
    repeats = {kind: number for kind, number in seen.items() if kind.startswith(("duplicate ", "test_leak "))}
    assert len(repeats) == 10
    assert min(repeats.values()) > 5
    # A mirrored image is beyond a perceptual hash. A cropped one may not be: in 3,000 scenes ours saw 15 of 17
    # within six bits, so `embedding` is what finds all of them, not the only thing that finds one.
    assert seen["flipped, seen by phash"] < 0.1 * (repeats["duplicate flipped"] + repeats["test_leak flipped"])
