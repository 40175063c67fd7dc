"""Zero-shot tasks on held-out batches while a model trains: retrieval of images and clips, and grounding of boxes.

Q queries, C candidates, R regions, E width of the comparison space.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from x2vlm.data.loading.batch import Batch
from x2vlm.models.tokens import VisionTokens
from x2vlm.objectives.box_losses import to_xyxy
from x2vlm.train.ranks import gather_json
from x2vlm.train.step import Trainer, pretrained_model

RECALL_AT = (1, 5, 10)
RIGHT_FROM = 0.5  # intersection over union, as in the grounding task


class ZeroShot:
    """Answers of one model to any number of batches, then measures over all of them and all ranks.

    Image and video streams get `image_of_text@k` and `text_of_image@k` (of a clip: `video_of_text@k` ...) by cosine
    similarity among all their rows, each sample once. Region streams get `grounding@0.5`, the percentage of texts whose
    predicted box is right, and `grounding_iou`, the mean intersection over union; captions of the whole image do not
    count.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._pairs: dict[str, list[tuple[Batch, Tensor, Tensor]]] = {}
        self._overlaps: dict[str, list[Tensor]] = {}

    def add(self, name: str, batch: Batch) -> None:
        """Let the model, which must be in evaluation mode, answer a batch of stream `name`; texts alone ask nothing."""
        if batch.kind == "region":
            self._overlaps.setdefault(name, []).append(self._located(batch))
        elif batch.kind != "text":
            self._pairs.setdefault(name, []).append((batch, *self._features(batch)))

    def measures(self) -> dict[str, float]:
        """By `<stream>/<measure>`; nothing of a stream without a row to count. Call it on all ranks."""
        found: dict[str, float] = {}
        for name, batches in self._pairs.items():
            found |= {f"{name}/{key}": value for key, value in self._retrieval(batches).items()}
        for name, overlaps in self._overlaps.items():
            found |= {f"{name}/{key}": value for key, value in self._grounding(torch.cat(overlaps)).items()}
        return found

    def _features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        model = pretrained_model(self._trainer)
        encode: Callable[[Tensor], VisionTokens] = model.encode_video if batch.kind == "video" else model.encode_image
        vision = encode(batch.float_pixels())
        image_BE, text_BE = model.project(vision, model.encode_text(batch.text_ids_BL, batch.text_mask_BL))
        return image_BE.float(), text_BE.float()

    def _located(self, batch: Batch) -> Tensor:
        """Intersection over union (R,) of predicted and annotated boxes, without captions of the whole image."""
        assert batch.image_of_R is not None
        assert batch.box_cxcywh_R4 is not None
        assert batch.is_whole_image_R is not None
        model, mask = pretrained_model(self._trainer), batch.text_mask_BL
        vision = model.encode_image(batch.float_pixels()).select(batch.image_of_R)
        predicted_R4 = model.locate(model.fuse(model.encode_text(batch.text_ids_BL, mask), mask, vision)).float()
        return overlap(predicted_R4, batch.box_cxcywh_R4)[~batch.is_whole_image_R]

    def _grounding(self, overlap_R: Tensor) -> dict[str, float]:
        right = (overlap_R >= RIGHT_FROM).sum()
        sums = torch.stack([right.double(), overlap_R.double().sum(), torch.tensor(len(overlap_R)).to(right).double()])
        if self._trainer.ranks.world_size > 1:
            dist.all_reduce(sums)
        num_right, total, count = sums.tolist()
        if not count:
            return {}
        return {f"grounding@{RIGHT_FROM}": 100 * num_right / count, "grounding_iou": total / count}

    def _retrieval(self, batches: list[tuple[Batch, Tensor, Tensor]]) -> dict[str, float]:
        trainer, kind = self._trainer, batches[0][0].kind
        keys = gather_json([key for batch, _, _ in batches for key in batch.keys], trainer.ranks)
        images, texts = torch.cat([item[1] for item in batches]), torch.cat([item[2] for item in batches])
        ids = torch.cat([batch.image_ids_B for batch, _, _ in batches if batch.image_ids_B is not None])
        if trainer.gather is not None:
            images, texts, ids = (trainer.gather.rows(rows) for rows in (images, texts, ids))
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        once = torch.tensor(sorted(first.values()), device=images.device)
        images, texts, ids = images[once], texts[once], ids[once]
        similarity = texts @ images.T
        same = ids[:, None] == ids[None, :]
        found = {f"{kind}_of_text@{k}": value for k, value in recalls(similarity, same).items()}
        found |= {f"text_of_{kind}@{k}": value for k, value in recalls(similarity.T, same.T).items()}
        return found | {"retrieval_pairs": float(len(once))}


def recalls(similarity_QC: Tensor, is_right_QC: Tensor) -> dict[int, float]:
    """By k the percentage of queries with a right candidate among the top k; ties count against it."""
    best_Q = similarity_QC.masked_fill(~is_right_QC, -torch.inf).amax(dim=1)
    ranks_Q = ((similarity_QC >= best_Q[:, None]) & ~is_right_QC).sum(dim=1)
    return {k: 100 * (ranks_Q < k).double().mean().item() for k in RECALL_AT}


def overlap(first_cxcywh_R4: Tensor, second_cxcywh_R4: Tensor) -> Tensor:
    """Intersection over union (R,) of boxes row by row; 0 where both are empty."""
    first_R4, second_R4 = to_xyxy(first_cxcywh_R4), to_xyxy(second_cxcywh_R4)
    upper_R2 = torch.minimum(first_R4[:, 2:], second_R4[:, 2:])
    inner_R = (upper_R2 - torch.maximum(first_R4[:, :2], second_R4[:, :2])).clamp_min(0).prod(dim=1)
    union_R = first_cxcywh_R4[:, 2:].prod(dim=1) + second_cxcywh_R4[:, 2:].prod(dim=1) - inner_R
    return torch.where(union_R > 0, inner_R / union_R.clamp_min(torch.finfo(union_R.dtype).tiny), 0.0)
