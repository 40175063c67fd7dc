"""Texts in every language: for everything that can be said, complete, agreeing, and free of leftovers."""

import itertools
import re

import numpy as np
import pyarrow as pa
import pytest

from pipelines.corpora.world.config import WorldConfig
from pipelines.corpora.world.drawing import languages
from pipelines.corpora.world.drawing.languages import (
    COLOUR_WORDS,
    LANGUAGES,
    RELATION_WORDS,
    TEXTURE_WORDS,
    describe,
    name_thing,
    relate,
)
from pipelines.corpora.world.drawing.scene import Thing, make_scene
from pipelines.corpora.world.drawing.texts import captions, full_phrase, region_phrases, unique_expression, word_overlap
from pipelines.corpora.world.drawing.words import COLOURS, RELATIONS, SHAPES, TEXTURES
from x2vlm.data.randomness import Draws
from x2vlm.data.rules.text_overlap import drop_repeats, find_overlaps

LEFTOVER = re.compile(r"[{}%_<>]|None|  |\b(left_of|plain)\b")


def thing(shape: str, colour: str = "red", texture: str = "striped") -> Thing:
    return Thing(shape, colour, texture, "small", 10, 10, 5, 0)


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_has_a_word_and_no_two_things_share_a_name(language: str) -> None:
    names = {
        (shape, colour, texture): name_thing(thing(shape, colour, texture), language)
        for shape, colour, texture in itertools.product(SHAPES, COLOURS, TEXTURES)
    }
    assert len(set(names.values())) == len(names)
    assert not [name for name in names.values() if LEFTOVER.search(name) or name != name.strip()]
    if language in ("zh", "ja"):
        assert not [name for name in names.values() if re.search("[A-Za-z]", name)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_relations_name_both_things(language: str) -> None:
    assert len(RELATION_WORDS[language]) == len(set(RELATION_WORDS[language].values())) == 8
    assert set(RELATION_WORDS[language]) <= set(RELATIONS)
    for relation in RELATION_WORDS[language]:
        text = relate(thing("star"), relation, thing("heart", "blue", "dotted"), language)
        assert not LEFTOVER.search(text)
        assert name_thing(thing("star"), language) in text


@pytest.mark.parametrize(
    ("language", "relation", "target", "text"),
    [
        ("de", "left_of", "diamond", "ein gestreifter roter Stern links von einer gepunkteten blauen Raute"),
        ("de", "above", "square", "ein gestreifter roter Stern über einem gepunkteten blauen Quadrat"),
        ("fr", "near", "star", "une étoile rouge rayée près d'une étoile bleue à pois"),
        ("fr", "behind", "square", "une étoile rouge rayée derrière un carré bleu à pois"),
        ("cs", "far_from", "arrow", "pruhovaná červená hvězda daleko od puntíkované modré šipky"),
        ("cs", "above", "heart", "pruhovaná červená hvězda nad puntíkovaným modrým srdcem"),
        ("cs", "left_of", "circle", "pruhovaná červená hvězda vlevo od puntíkovaného modrého kruhu"),
        ("cs", "behind", "arrow", "pruhovaná červená hvězda za puntíkovanou modrou šipkou"),
        ("zh", "left_of", "square", "一个红色的条纹五角星在一个蓝色的圆点正方形的左边"),
        ("ja", "above", "square", "水玉模様の青色の正方形の上に縞模様の赤色の星があります"),
    ],
)
def test_sentences_a_speaker_would_accept(language: str, relation: str, target: str, text: str) -> None:
    assert relate(thing("star"), relation, thing(target, "blue", "dotted"), language) == text


@pytest.mark.parametrize("language", LANGUAGES)
def test_descriptions_of_scenes_are_complete(language: str) -> None:
    config = WorldConfig()
    for index in range(40):
        text = describe(make_scene(config, index), language, Draws(index))
        assert len(text) > 5
        assert not LEFTOVER.search(text)


def test_vocabularies_are_complete() -> None:
    for language in LANGUAGES:
        assert set(COLOUR_WORDS[language]) == set(COLOURS)
        assert set(TEXTURE_WORDS[language]) == set(TEXTURES)
    assert set(languages.ZH_SHAPES) == set(languages.JA_SHAPES) == set(SHAPES)
    assert all(set(nouns) == set(SHAPES) for nouns in languages.NOUNS.values())
    assert all(noun.genitive and noun.instrumental for noun in languages.NOUNS["cs"].values())


def test_english_captions_differ_and_use_the_right_article() -> None:
    config = WorldConfig()
    phrasings = set()
    for index in range(60):
        scene = make_scene(config, index)
        texts = captions(scene, Draws(index), 5)
        assert len(set(texts)) == 5
        for text in texts:
            assert not re.search(r"\ba [aeio]|\ban [^aeio]", text), text
            assert not re.search(r"[{}_]|None|  ", text), text
            named = {shape for shape in SHAPES if re.search(rf"\b{shape}(s|es)?\b", text)}
            assert named <= {thing.shape for thing in scene.things} | ({"ring"} if "ringed" in text else set())
            phrasings.add(re.sub("|".join((*SHAPES, *COLOURS, *TEXTURES)), "#", text))
    assert len(phrasings) > 60


def test_clean_region_phrases_are_left_alone_by_the_filter() -> None:
    config = WorldConfig()
    for index in range(60):
        regions = region_phrases(make_scene(config, index), Draws(index))
        texts = pa.array([text for text, _ in regions], pa.string())
        areas = np.array([float(box[2] * box[3]) for _, box in regions])
        pairs = find_overlaps(texts, np.zeros(len(regions), np.int64), areas, 0.75, "smaller")
        assert np.isnan(drop_repeats(pairs)).all()
    assert word_overlap("a red star", "red star here") == 2 / 3


def test_a_unique_expression_fits_one_thing_only() -> None:
    config = WorldConfig()
    found = 0
    for index in range(60):
        things = make_scene(config, index).things
        for number in range(len(things)):
            words = unique_expression(make_scene(config, index), number)
            if words is not None:
                found += 1
                asked = set(words.split())
                fits = [one for one in things if asked <= set(full_phrase(one).split())]
                assert fits == [things[number]], words
    assert found > 150
