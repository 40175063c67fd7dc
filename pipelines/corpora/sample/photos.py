"""The source of every photo and clip, and all hand-written texts of the corpus.

Photos are named by COCO image id. No photo of Karpathy's val or test split is used for training, and no held-out
photo appears in any training source. Relations, crops and clip captions were written while looking at the media.
"""

from dataclasses import dataclass

BASE_URL = "http://sample.invalid"
"""Never resolves (RFC 6761). The sample cards rewrite it to the address of the loopback media server."""

COCO_TRAIN = [
    790, 107438, 111076, 121647, 144941, 174375, 196393, 234748,
    242611, 401416, 408805, 516008, 525891, 540186, 542145, 579003,
]  # fmt: skip
COCO_WITHOUT_CAPTIONS = 401416
"""Upstream gives boxes and no captions for it here: the T = NaN case of the paper's Table 1."""

HELD_OUT = [
    122745, 126107, 160012, 165518, 183709, 208901, 214753, 252219,
    255165, 261888, 311303, 343937, 377575, 403353, 519208, 551780,
]  # fmt: skip

# As upstream, Visual Genome is partly COCO: the first five are COCO train photos too.
VISUAL_GENOME = [790, 107438, 121647, 196393, 516008, 168974, 175364, 229358, 269314, 297343, 397133, 553664, 577539]

OPENIMAGES = [5001, 303818, 423617, 456496, 458054, 500663, 520707, 565778]

# Two photos of each web source are also in other sources: real crawls contain photos of curated sets.
CC3M = [8762, 12667, 2473, 431848, 885, 226111, 9483, 405279, 500663, 196393]
LAION = [785, 7281, 12120, 189775, 7574, 463690, 427034, 11149, 12667, 297343]

CAPTION_WITH_QUOTES = 'a street sign on a pole that says "no bicycles, skates or skateboards"'
CAPTION_WITH_OPEN_QUOTE = '"green light at a wide crossing after sunset'
"""A reader that interprets quotes would swallow the lines after this one."""


@dataclass(frozen=True)
class Relation:
    """A hand-annotated relation in the photo: COCO annotation ids of both ends and an OpenImages label."""

    image_id: int
    subject: int
    label: str
    target: int


RELATIONS = [
    Relation(5001, 1328232, "holds", 2146793),
    Relation(303818, 1289859, "wears", 1164526),
    Relation(423617, 221873, "ride", 149444),
    Relation(423617, 2029719, "inside_of", 139476),
    Relation(456496, 191529, "holds", 1431731),
    Relation(520707, 1756536, "holds", 1175457),
    Relation(565778, 221923, "inside_of", 174719),
]


@dataclass(frozen=True)
class Clip:
    """An unmodified video: name in the corpus, file in the samples and author."""

    name: str
    sample: str
    author: str
    licence: str
    licence_url: str
    duration: str


CLIPS = [
    Clip(
        "chaplin.mp4",
        "videos/moviepy_chaplin.mp4",
        "film with Charlie Chaplin",
        "public domain",
        "https://creativecommons.org/publicdomain/mark/1.0/",
        "PT00H00M09S",
    ),
    Clip(
        "nasa.mp4",
        "videos/torchcodec_nasa_13013.mp4",
        "NASA",
        "public domain",
        "https://www.nasa.gov/nasa-brand-center/images-and-media/",
        "PT00H00M13S",
    ),
    Clip(
        "bunny.webm",
        "videos/moviepy_big_buck_bunny_432_433.webm",
        "Blender Foundation (Big Buck Bunny)",
        "CC BY 3.0",
        "https://creativecommons.org/licenses/by/3.0/",
        "PT00H00M01S",
    ),
]

CLIP_CAPTIONS = [
    ("1001", "chaplin.mp4", "two men in dark suits and hats stand on a street corner in an old black and white film"),
    ("1002", "nasa.mp4", "a worker in a white suit on a red lift inspects a large golden mirror in the dark"),
    ("1003", "bunny.webm", "a big gray cartoon rabbit stands in a sunny forest"),
    ("1004", "chaplin.mp4", "black and white silent film of two men outdoors"),
    ("1005", "nasa.mp4", "gold hexagonal mirror segments beside a person on a lifting platform"),
]


@dataclass(frozen=True)
class Crop:
    """A piece cut from an OpenImages photo: `box` is left, top, right, bottom in pixels of the photo."""

    name: str
    photo: str
    box: tuple[int, int, int, int]
    caption: str


FIREWORKS = "0099d4cbcd86d84d.jpg"
PLANE = "00b6269cf7ccd74a.jpg"
CITY = "00f87939ea7f6340.jpg"

# Cut, never resampled: exact edges, and the same pixels with every version of Pillow.
CROP_SHORT_224 = Crop("photos/crop_300x224.jpg", FIREWORKS, (190, 120, 490, 344), "fireworks over a city at night")
CROP_ASPECT_3 = Crop("photos/crop_672x224.jpg", PLANE, (8, 110, 680, 334), "tail and wing of a small white aircraft")
CROP_SHORT_223 = Crop(
    "bad/crop_300x223.jpg", FIREWORKS, (190, 120, 490, 343), "fireworks glow red behind tall buildings"
)
CROP_SHORT_200 = Crop(
    "bad/crop_200x300.jpg", FIREWORKS, (250, 100, 450, 400), "red night sky over a city skyline by the water"
)
CROP_ASPECT_OVER_3 = Crop("bad/crop_679x226.jpg", CITY, (0, 150, 679, 376), "rooftops of a dense city from above")
CROPS = [CROP_SHORT_224, CROP_ASPECT_3, CROP_SHORT_223, CROP_SHORT_200, CROP_ASPECT_OVER_3]
