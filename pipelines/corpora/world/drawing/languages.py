"""Descriptions in German, French, Czech, Chinese and Japanese, by templates with the agreement of each language.

A description is either a list of things in the base form ("ein roter Stern und eine blaue Raute") or one thing in its
relation to another, in the case that the relation requires ("links von einer blauen Raute").
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.corpora.world.drawing.scene import Scene, Thing
from x2vlm.data.randomness import Draws

LANGUAGES = ("de", "fr", "cs", "zh", "ja")


@dataclass(frozen=True)
class Noun:
    """A noun with its gender and the forms that relations need (Czech: genitive and instrumental)."""

    word: str
    gender: str
    genitive: str = ""
    instrumental: str = ""


NOUNS: dict[str, dict[str, Noun]] = {
    "de": {
        "circle": Noun("Kreis", "m"),
        "square": Noun("Quadrat", "n"),
        "triangle": Noun("Dreieck", "n"),
        "pentagon": Noun("Fünfeck", "n"),
        "hexagon": Noun("Sechseck", "n"),
        "star": Noun("Stern", "m"),
        "diamond": Noun("Raute", "f"),
        "cross": Noun("Kreuz", "n"),
        "heart": Noun("Herz", "n"),
        "crescent": Noun("Mondsichel", "f"),
        "ring": Noun("Ring", "m"),
        "arrow": Noun("Pfeil", "m"),
        "semicircle": Noun("Halbkreis", "m"),
    },
    "fr": {
        "circle": Noun("cercle", "m"),
        "square": Noun("carré", "m"),
        "triangle": Noun("triangle", "m"),
        "pentagon": Noun("pentagone", "m"),
        "hexagon": Noun("hexagone", "m"),
        "star": Noun("étoile", "f"),
        "diamond": Noun("losange", "m"),
        "cross": Noun("croix", "f"),
        "heart": Noun("cœur", "m"),
        "crescent": Noun("croissant", "m"),
        "ring": Noun("anneau", "m"),
        "arrow": Noun("flèche", "f"),
        "semicircle": Noun("demi-cercle", "m"),
    },
    "cs": {
        "circle": Noun("kruh", "m", "kruhu", "kruhem"),
        "square": Noun("čtverec", "m", "čtverce", "čtvercem"),
        "triangle": Noun("trojúhelník", "m", "trojúhelníku", "trojúhelníkem"),
        "pentagon": Noun("pětiúhelník", "m", "pětiúhelníku", "pětiúhelníkem"),
        "hexagon": Noun("šestiúhelník", "m", "šestiúhelníku", "šestiúhelníkem"),
        "star": Noun("hvězda", "f", "hvězdy", "hvězdou"),
        "diamond": Noun("kosočtverec", "m", "kosočtverce", "kosočtvercem"),
        "cross": Noun("kříž", "m", "kříže", "křížem"),
        "heart": Noun("srdce", "n", "srdce", "srdcem"),
        "crescent": Noun("půlměsíc", "m", "půlměsíce", "půlměsícem"),
        "ring": Noun("prstenec", "m", "prstence", "prstencem"),
        "arrow": Noun("šipka", "f", "šipky", "šipkou"),
        "semicircle": Noun("půlkruh", "m", "půlkruhu", "půlkruhem"),
    },
}
ZH_SHAPES = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "pentagon": "五边形",
    "hexagon": "六边形",
    "star": "五角星",
    "diamond": "菱形",
    "cross": "十字形",
    "heart": "心形",
    "crescent": "月牙形",
    "ring": "圆环",
    "arrow": "箭头",
    "semicircle": "半圆形",
}
JA_SHAPES = {
    "circle": "円",
    "square": "正方形",
    "triangle": "三角形",
    "pentagon": "五角形",
    "hexagon": "六角形",
    "star": "星",
    "diamond": "ひし形",
    "cross": "十字",
    "heart": "ハート",
    "crescent": "三日月",
    "ring": "輪",
    "arrow": "矢印",
    "semicircle": "半円",
}
COLOUR_WORDS: dict[str, dict[str, str]] = {
    "de": {  # stems: the ending is added
        "red": "rot",
        "orange": "orangefarben",
        "yellow": "gelb",
        "green": "grün",
        "blue": "blau",
        "purple": "violett",
        "pink": "rosafarben",
        "brown": "braun",
        "black": "schwarz",
        "white": "weiß",
    },
    "fr": {  # masculine/feminine
        "red": "rouge/rouge",
        "orange": "orange/orange",
        "yellow": "jaune/jaune",
        "green": "vert/verte",
        "blue": "bleu/bleue",
        "purple": "violet/violette",
        "pink": "rose/rose",
        "brown": "marron/marron",
        "black": "noir/noire",
        "white": "blanc/blanche",
    },
    "cs": {  # stems of hard adjectives
        "red": "červen",
        "orange": "oranžov",
        "yellow": "žlut",
        "green": "zelen",
        "blue": "modr",
        "purple": "fialov",
        "pink": "růžov",
        "brown": "hněd",
        "black": "čern",
        "white": "bíl",
    },
    "zh": {
        "red": "红色",
        "orange": "橙色",
        "yellow": "黄色",
        "green": "绿色",
        "blue": "蓝色",
        "purple": "紫色",
        "pink": "粉色",
        "brown": "棕色",
        "black": "黑色",
        "white": "白色",
    },
    "ja": {
        "red": "赤色",
        "orange": "オレンジ色",
        "yellow": "黄色",
        "green": "緑色",
        "blue": "青色",
        "purple": "紫色",
        "pink": "ピンク色",
        "brown": "茶色",
        "black": "黒色",
        "white": "白色",
    },
}
TEXTURE_WORDS: dict[str, dict[str, str]] = {
    "de": {
        "plain": "einfarbig",
        "striped": "gestreift",
        "dotted": "gepunktet",
        "checkered": "kariert",
        "ringed": "geringelt",
    },
    "fr": {
        "plain": "uni/unie",
        "striped": "rayé/rayée",
        "dotted": "à pois/à pois",
        "checkered": "à carreaux/à carreaux",
        "ringed": "à anneaux/à anneaux",
    },
    "cs": {
        "plain": "jednobarevn",
        "striped": "pruhovan",
        "dotted": "puntíkovan",
        "checkered": "kostkovan",
        "ringed": "kroužkovan",
    },
    "zh": {"plain": "纯色", "striped": "条纹", "dotted": "圆点", "checkered": "方格", "ringed": "环纹"},
    "ja": {"plain": "無地", "striped": "縞模様", "dotted": "水玉模様", "checkered": "市松模様", "ringed": "輪模様"},
}
RELATION_WORDS: dict[str, dict[str, str]] = {
    "de": {
        "left_of": "links von",
        "right_of": "rechts von",
        "above": "über",
        "below": "unter",
        "in_front_of": "vor",
        "behind": "hinter",
        "near": "neben",
        "far_from": "weit entfernt von",
    },
    "fr": {
        "left_of": "à gauche d'",
        "right_of": "à droite d'",
        "above": "au-dessus d'",
        "below": "au-dessous d'",
        "in_front_of": "devant ",
        "behind": "derrière ",
        "near": "près d'",
        "far_from": "loin d'",
    },
    "cs": {  # + genitive, or after "+" instrumental
        "left_of": "vlevo od",
        "right_of": "vpravo od",
        "above": "+nad",
        "below": "+pod",
        "in_front_of": "+před",
        "behind": "+za",
        "near": "blízko",
        "far_from": "daleko od",
    },
    "zh": {
        "left_of": "左边",
        "right_of": "右边",
        "above": "上方",
        "below": "下方",
        "in_front_of": "前面",
        "behind": "后面",
        "near": "旁边",
        "far_from": "很远",
    },
    "ja": {
        "left_of": "左",
        "right_of": "右",
        "above": "上",
        "below": "下",
        "in_front_of": "手前",
        "behind": "後ろ",
        "near": "近く",
        "far_from": "遠く離れたところ",
    },
}


def describe(scene: Scene, language: str, draws: Draws) -> str:
    """A true description of a scene in one of LANGUAGES."""
    related = [relation for relation in scene.relations if relation.name in RELATION_WORDS[language]]
    if related and draws.chance(0.6):
        relation = draws.choice(related)
        return relate(scene.things[relation.subject], relation.name, scene.things[relation.target], language)
    return list_things(draws.shuffled(scene.things)[:3], language, draws.choice((False, True)))


def list_things(things: Sequence[Thing], language: str, framed: bool) -> str:
    """The things in the base form, in a sentence that mentions the image if `framed`."""
    names = [name_thing(thing, language) for thing in things]
    match language:
        case "de":
            return f"Auf dem Bild zu sehen: {_join(names, 'und')}" if framed else _join(names, "und")
        case "fr":
            return f"Sur l'image : {_join(names, 'et')}" if framed else _join(names, "et")
        case "cs":
            return f"Na obrázku: {_join(names, 'a')}" if framed else _join(names, "a")
        case "zh":
            text = "、".join(names[:-1]) + ("和" if len(names) > 1 else "") + names[-1]
            return f"图中有{text}" if framed else text
    text = "と".join(names)
    return f"画像には{text}があります" if framed else text


def name_thing(thing: Thing, language: str) -> str:
    """The thing with its colour and texture in the base form (nominative), with an article where there is one."""
    colour, texture = COLOUR_WORDS[language][thing.colour], TEXTURE_WORDS[language][thing.texture]
    match language:
        case "de":
            noun = NOUNS["de"][thing.shape]
            article, ending = {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")}[noun.gender]
            return f"{article} {texture}{ending} {colour}{ending} {noun.word}"
        case "fr":
            return _french(thing)
        case "cs":
            noun = NOUNS["cs"][thing.shape]
            ending = {"m": "ý", "f": "á", "n": "é"}[noun.gender]
            return f"{texture}{ending} {colour}{ending} {noun.word}"
        case "zh":
            return f"一个{colour}的{texture}{ZH_SHAPES[thing.shape]}"
    return f"{texture}の{colour}の{JA_SHAPES[thing.shape]}"


def relate(subject: Thing, relation: str, target: Thing, language: str) -> str:
    """ "ein roter Stern links von einer blauen Raute" and the like; Japanese and Chinese make it a sentence."""
    words, one = RELATION_WORDS[language][relation], name_thing(subject, language)
    match language:
        case "de":
            return f"{one} {words} {_german_dative(target)}"
        case "fr":
            return f"{one} {words}{_french(target)}"
        case "cs":
            return f"{one} {words.removeprefix('+')} {_czech_case(target, instrumental=words.startswith('+'))}"
        case "zh" if relation == "far_from":
            return f"{one}离{name_thing(target, language)}很远"
        case "zh":
            return f"{one}在{name_thing(target, language)}的{words}"
    if relation == "far_from":
        return f"{name_thing(target, language)}から遠く離れたところに{one}があります"
    return f"{name_thing(target, language)}の{words}に{one}があります"


def _german_dative(thing: Thing) -> str:
    noun = NOUNS["de"][thing.shape]
    article = "einer" if noun.gender == "f" else "einem"
    texture, colour = TEXTURE_WORDS["de"][thing.texture], COLOUR_WORDS["de"][thing.colour]
    return f"{article} {texture}en {colour}en {noun.word}"


def _french(thing: Thing) -> str:
    noun = NOUNS["fr"][thing.shape]
    form = 1 if noun.gender == "f" else 0
    colour = COLOUR_WORDS["fr"][thing.colour].split("/")[form]
    texture = TEXTURE_WORDS["fr"][thing.texture].split("/")[form]
    return f"{('un', 'une')[form]} {noun.word} {colour} {texture}"


def _czech_case(thing: Thing, instrumental: bool) -> str:
    noun = NOUNS["cs"][thing.shape]
    feminine = noun.gender == "f"
    ending = ("ou" if feminine else "ým") if instrumental else ("é" if feminine else "ého")
    texture, colour = TEXTURE_WORDS["cs"][thing.texture], COLOUR_WORDS["cs"][thing.colour]
    return f"{texture}{ending} {colour}{ending} {noun.instrumental if instrumental else noun.genitive}"


def _join(names: Sequence[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
