"""Vocabulary of scenes: colours, textures, sizes, relations and motions, as named in the truth."""

from pipelines.corpora.world.drawing.shapes import OUTLINES

SHAPES = tuple(OUTLINES)
COLOURS = {
    "red": (208, 36, 36),
    "orange": (242, 135, 18),
    "yellow": (245, 220, 40),
    "green": (40, 150, 52),
    "blue": (38, 82, 205),
    "purple": (125, 45, 165),
    "pink": (246, 150, 190),
    "brown": (115, 68, 30),
    "black": (22, 22, 24),
    "white": (246, 246, 242),
}
TEXTURES = ("plain", "striped", "dotted", "checkered", "ringed")
SIZES = {"tiny": 8, "small": 12, "large": 18, "huge": 26}
"""Radius in hundredths of the image's short side."""

BACKGROUNDS = {
    "grey": ((128, 128, 130), (96, 98, 104)),
    "beige": ((196, 182, 158), (160, 148, 128)),
    "slate": ((84, 94, 110), (112, 122, 136)),
    "olive": ((112, 116, 88), (140, 142, 116)),
    "mauve": ((150, 132, 150), (118, 104, 122)),
    "teal": ((98, 132, 134), (128, 156, 156)),
}
RELATIONS = (
    "left_of",
    "right_of",
    "above",
    "below",
    "in_front_of",
    "behind",
    "near",
    "far_from",
    "inside",
    "around",
)
INVERSE = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
    "in_front_of": "behind",
    "behind": "in_front_of",
    "near": "near",
    "far_from": "far_from",
    "inside": "around",
    "around": "inside",
}
MOTIONS = ("towards", "away_from", "past", "after", "circling")
"""Motions of the mover relative to the other thing: comes closer, leaves, passes by, follows, goes round."""
