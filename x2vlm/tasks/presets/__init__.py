"""Named settings of fine-tunings and evaluations: those of the paper and of the released files."""

from x2vlm.tasks.presets.lookup import PRESETS, preset
from x2vlm.tasks.presets.preset import Preset

__all__ = ["PRESETS", "Preset", "preset"]
