"""The towers and the matching head as programs of `torch.export`: they run without this package, for any batch size.

    from x2vlm.inference.export import export_programs
    export_programs(inference.load(folder), Path("programs"))
    image = torch.export.load("programs/image.pt2").module()  # needs torch alone
    features_BE, summary_BD, patches_BPD = image(pixels_BCHW)

`Processor` says how pixels and ids are made. ONNX is not written: torch's exporter needs the package onnxscript.
B rows, C channels, H W pixels, L tokens, P patches, D width, E width of the comparison space.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from x2vlm.inference.encoding import Pretrained
from x2vlm.inference.processor import num_positions
from x2vlm.models.tokens import VisionTokens
from x2vlm.models.x2vlm import X2VLM

SUFFIX = ".pt2"
# Rows and tokens of the inputs that are traced: any numbers but 0 and 1, which torch takes for constants.
_ROWS, _TOKENS = 2, 5


class ImageTower(nn.Module):
    """Pixels (B, C, H, W) to features (B, E), summary tokens (B, D) and patches (B, P, D)."""

    def __init__(self, model: X2VLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vision = self.model.encode_image(pixels)
        return self.model.project_vision(vision), vision.summary_BD, vision.patches_MPD


class TextTower(nn.Module):
    """Ids and mask (B, L), true on real tokens, to features (B, E) and states (B, L, D)."""

    def __init__(self, model: X2VLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        states_BLD = self.model.encode_text(ids, mask)
        return self.model.project_text(states_BLD), states_BLD


class MatchingHead(nn.Module):
    """Outputs of both towers, row by row, to logits (B, 2); class 1 means the text describes the image."""

    def __init__(self, model: X2VLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, states: Tensor, mask: Tensor, summary: Tensor, patches: Tensor) -> Tensor:
        return self.model.match(self.model.fuse(states, mask, VisionTokens(summary, patches)))


def export_programs(pretrained: Pretrained, folder: Path) -> dict[str, Path]:
    """Writes `image.pt2`, `text.pt2` and `match.pt2`, each with its weights; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, program in programs_of(pretrained).items():
        paths[name] = folder / f"{name}{SUFFIX}"
        torch.export.save(program, paths[name])
    return paths


@torch.no_grad()
def programs_of(pretrained: Pretrained) -> dict[str, ExportedProgram]:
    """The programs `image`, `text` and `match`, for any number of rows and, of texts, tokens."""
    model = pretrained.model
    rows, tokens = Dim("rows"), Dim("tokens", max=num_positions(model.config))
    side = model.config.vision.image_res
    pixels = torch.zeros(_ROWS, 3, side, side, device=pretrained.device, dtype=pretrained.dtype)
    ids = torch.full((_ROWS, _TOKENS), pretrained.processor.tokenizer.cls_id, device=pretrained.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    image, text, match = ImageTower(model).eval(), TextTower(model).eval(), MatchingHead(model).eval()
    (_, summary, patches), (_, states) = image(pixels), text(ids, mask)
    by_row, by_token = {0: rows}, {0: rows, 1: tokens}
    return {
        "image": torch.export.export(image, (pixels,), dynamic_shapes=(by_row,)),
        "text": torch.export.export(text, (ids, mask), dynamic_shapes=(by_token, by_token)),
        "match": torch.export.export(
            match, (states, mask, summary, patches), dynamic_shapes=(by_token, by_token, by_row, by_row)
        ),
    }
