"""A preset by its name."""

from x2vlm.config import did_you_mean
from x2vlm.tasks.presets.image_text import IMAGE_TEXT
from x2vlm.tasks.presets.multilingual import MULTILINGUAL
from x2vlm.tasks.presets.preset import Preset
from x2vlm.tasks.presets.video import VIDEO

PRESETS = {one.name: one for one in (*IMAGE_TEXT, *VIDEO, *MULTILINGUAL)}


def preset(name: str) -> Preset:
    """The preset of that name; ValueError, with the nearest known name, if there is none."""
    if name not in PRESETS:
        raise ValueError(f"no preset is called {name!r}; {did_you_mean(name, PRESETS)}")
    return PRESETS[name]
