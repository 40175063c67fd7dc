"""Hard negatives of the matching loss: drawn on the device, from a group of rows, without synchronisation.

B rows of this rank, G rows of a group, C groups of this rank, E width of the comparison space.
"""

import torch
from torch import Tensor

from x2vlm.errors import ConfigError
from x2vlm.models.blocks.precision import full_precision
from x2vlm.objectives.across_ranks import Gather, NegativeGroup


def draw_negatives(
    image_BE: Tensor,
    text_BE: Tensor,
    temperature: Tensor,
    image_ids_B: Tensor | None = None,
    generator: torch.Generator | None = None,
    group: Gather | None = None,
    *,
    group_size: int | None = None,
    all_rows: tuple[int, int] | None = None,
    text_keys_B: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A hard negative image per text, a hard negative text per image, and which rows have one: (B,) each.

    Drawn with probability softmax(similarity / temperature) + 1e-5, never from rows of the same image (without
    `image_ids_B`: never the row itself) or, with `text_keys_B`, of an equal text: from the rows of this rank, with
    `group_size` from consecutive groups of that size, or with `group` from the rows of all its ranks, numbered in rank
    order. `generator` must be on the features' device. There is no synchronisation.

    `all_rows` = (rows of all ranks, index of this rank's first) draws as a single process would: with generators in
    equal states on every rank, a row's negatives do not depend on the number of ranks.
    """
    num_rows = len(image_BE)
    size = num_rows if group_size is None or group is not None else group_size
    with torch.no_grad(), full_precision(image_BE):
        image, text = image_BE.float(), text_BE.float()
        rows = torch.arange(num_rows, device=image.device)
        ids = rows + (0 if group is None else group.rank * num_rows) if image_ids_B is None else image_ids_B
        # (C, G, ...) candidates for (C, B / C, ...) rows: several groups of this rank, or one of several ranks.
        images, texts, all_ids = (
            (x.reshape(-1, size, *x.shape[1:]) if group is None else group.rows(x)[None]) for x in (image, text, ids)
        )
        num_groups = len(images)
        same_BG = (ids.view(num_groups, -1, 1) == all_ids[:, None]).flatten(0, 1)
        if text_keys_B is not None:
            all_keys = text_keys_B.reshape(-1, size) if group is None else group.rows(text_keys_B)[None]
            same_BG |= (text_keys_B.view(num_groups, -1, 1) == all_keys[:, None]).flatten(0, 1)
        similar_images = text.reshape(num_groups, -1, text.shape[-1]) @ images.transpose(1, 2) / temperature.float()
        similar_texts = image.reshape(num_groups, -1, image.shape[-1]) @ texts.transpose(1, 2) / temperature.float()
        first_of_group = rows // size * size if group is None else 0
        image_of_text = _draw(negative_weights(similar_images.flatten(0, 1), same_BG), generator, all_rows)
        text_of_image = _draw(negative_weights(similar_texts.flatten(0, 1), same_BG), generator, all_rows)
        return image_of_text + first_of_group, text_of_image + first_of_group, ~same_BG.all(dim=1)


def negative_weights(similarity_BG: Tensor, same_BG: Tensor) -> Tensor:
    """Weights to draw a negative for each of B rows from G candidates: softmax + 1e-5, zero where `same_BG`."""
    return (similarity_BG.softmax(dim=1) + 1e-5).masked_fill(same_BG, 0.0)


def require_group(label: str, size: int | None, num_rows: int, group: NegativeGroup | None) -> None:
    """ConfigError unless groups of `size` rows of the whole batch can be formed from `num_rows` rows of each rank."""
    if size is None:
        return
    if group is not None:
        found = num_rows * group.gather.world_size
        if found != size:
            raise ConfigError(
                f"{label}: {found} rows in a group of ranks, negative_group_size is {size}: make it equal"
            )
    elif num_rows % size:
        raise ConfigError(
            f"{label}: negative_group_size {size} does not divide the {num_rows} rows of a rank: choose a divisor, or "
            f"one that ranks fill together and pass their NegativeGroup"
        )


def _draw(weights_BG: Tensor, generator: torch.Generator | None, all_rows: tuple[int, int] | None) -> Tensor:
    """One draw per row with probability proportional to its weights; 0 for a row of zeros.

    `torch.multinomial` raises on such a row, and synchronises to detect it. Dividing by exponential noise and taking
    the argmax is the same distribution and does neither.
    """
    num_rows, size = weights_BG.shape
    total, first = all_rows or (num_rows, 0)
    noise = weights_BG.new_empty(total, size).exponential_(generator=generator)[first : first + num_rows]
    return (weights_BG / noise.clamp_min(torch.finfo(noise.dtype).tiny)).argmax(dim=1)
