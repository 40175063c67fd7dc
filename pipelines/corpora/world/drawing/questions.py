"""Questions and statements about scenes in several languages: what xGQA, MaRVL and XVNLI ask, by templates."""

from collections.abc import Mapping

from pipelines.corpora.world.drawing.languages import COLOUR_WORDS, JA_SHAPES, NOUNS, ZH_SHAPES
from pipelines.corpora.world.drawing.texts import a

QUESTION_LANGUAGES = ("en", "de", "zh", "ja")
PAIR_LANGUAGES = ("de", "zh", "ja")
DEFINITE = {"m": "der", "f": "die", "n": "das"}
ACCUSATIVE = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}
NOMINATIVE = {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")}
NEUTRAL: Mapping[str, tuple[str, ...]] = {  # neither follows from an image nor contradicts one
    "en": ("The picture was made on a Monday.", "Somebody paid for this picture.", "It was drawn by a child."),
    "de": ("Das Bild entstand an einem Montag.", "Jemand hat für das Bild bezahlt.", "Ein Kind hat es gezeichnet."),
    "fr": ("L'image a été faite un lundi.", "Quelqu'un a payé cette image.", "Un enfant l'a dessinée."),
    "cs": ("Obrázek vznikl v pondělí.", "Někdo za obrázek zaplatil.", "Nakreslilo ho dítě."),
    "zh": ("这张图是在星期一画的。", "有人为这张图付了钱。", "它是一个孩子画的。"),
    "ja": ("この絵は月曜日に描かれました。", "誰かがこの絵にお金を払いました。", "子供が描きました。"),
}


def how_many(language: str) -> str:
    """How many shapes there are."""
    return {
        "en": "How many shapes are there?",
        "de": "Wie viele Formen sind zu sehen?",
        "zh": "图中有几个图形？",
        "ja": "図形はいくつありますか？",
    }[language]


def what_colour(shape: str, language: str) -> str:
    """Which colour the only thing of a shape has."""
    match language:
        case "en":
            return f"What color is the {shape}?"
        case "de":
            noun = NOUNS["de"][shape]
            return f"Welche Farbe hat {DEFINITE[noun.gender]} {noun.word}?"
        case "zh":
            return f"{ZH_SHAPES[shape]}是什么颜色的？"
    return f"{JA_SHAPES[shape]}は何色ですか？"


def is_there(colour: str, shape: str, language: str) -> str:
    """Whether there is a thing of this colour and shape."""
    match language:
        case "en":
            return f"Is there {a(f'{colour} {shape}')}?"
        case "de":
            noun = NOUNS["de"][shape]
            article, ending = NOMINATIVE[noun.gender]
            return f"Ist {article} {COLOUR_WORDS['de'][colour]}{ending} {noun.word} zu sehen?"
        case "zh":
            return f"图中有{COLOUR_WORDS['zh'][colour]}的{ZH_SHAPES[shape]}吗？"
    return f"{COLOUR_WORDS['ja'][colour]}の{JA_SHAPES[shape]}はありますか？"


def about_pair(template: str, colour: str, shape: str, language: str) -> str:
    """That `both` images show a shape, or at least `one` of them a shape in a colour."""
    match language:
        case "de":
            noun = NOUNS["de"][shape]
            article, ending = ACCUSATIVE[noun.gender]
            if template == "both":
                return f"Beide Bilder zeigen {article} {noun.word}."
            return f"Mindestens ein Bild zeigt {article} {COLOUR_WORDS['de'][colour]}{ending} {noun.word}."
        case "zh":
            if template == "both":
                return f"两张图中都有{ZH_SHAPES[shape]}。"
            return f"至少一张图中有{COLOUR_WORDS['zh'][colour]}的{ZH_SHAPES[shape]}。"
    if template == "both":
        return f"どちらの画像にも{JA_SHAPES[shape]}があります。"
    return f"少なくとも一枚の画像に{COLOUR_WORDS['ja'][colour]}の{JA_SHAPES[shape]}があります。"
