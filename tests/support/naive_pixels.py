"""What a model is to see of an image, by Pillow and NumPy alone: the independent side of comparisons of pixels."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# CLIP's, as open_clip publishes them (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD).
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def naive_pixels(image: Image.Image, image_res: int) -> Tensor:
    """The whole image squashed to a square (bicubic), its channels between 0 and 1, normalised: (3, H, W)."""
    resized = np.asarray(image.convert("RGB").resize((image_res, image_res), Image.Resampling.BICUBIC))
    values = (resized.astype(np.float32) / np.float32(255) - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
