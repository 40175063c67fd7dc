"""All pairs of embeddings with a cosine of at least tau: exact, block by block, on a CPU or GPU.

No approximate index: blocks of matrix products miss nothing, need no training and run on any device. N rows against M
cost 2 N M D operations for width D: 100,000 test images against 100 million rows of width 512 are 10^16, a minute at
200 TFLOP/s. Blocks are independent, so rows can be split among workers.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

BLOCK = 4096  # rows of a block: a product of 64 MiB

# Array shapes: N, M rows, D width of an embedding


class Neighbours(NamedTuple):
    """Pairs of row indices and their cosine."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    cosine: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.left)


def near_neighbours(embedding_ND: NDArray[np.floating], tau: float, device: str = "cpu") -> Neighbours:
    """Every pair of rows (left < right) with a cosine of at least `tau`, sorted. Rows need no unit length.

    Products are made in float32. Rows of zeros or with a non-finite value match nothing. ValueError unless
    0 < tau <= 1.
    """
    return _join(embedding_ND, embedding_ND, tau, device, upper=True)


def cross_neighbours(
    query_ND: NDArray[np.floating], embedding_MD: NDArray[np.floating], tau: float, device: str = "cpu"
) -> Neighbours:
    """Every pair of a query (left) and a row (right) with a cosine of at least `tau`, as `near_neighbours` does."""
    if query_ND.shape[1:] != embedding_MD.shape[1:]:
        raise ValueError(f"queries of shape {query_ND.shape}, embeddings of shape {embedding_MD.shape}: widths differ")
    return _join(query_ND, embedding_MD, tau, device, upper=False)


def _join(
    left_ND: NDArray[np.floating], right_MD: NDArray[np.floating], tau: float, device: str, upper: bool
) -> Neighbours:
    if not 0 < tau <= 1:
        raise ValueError(f"tau {tau}: a cosine above 0 and up to 1")
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
    for top in range(0, len(left_ND), BLOCK):
        left_BD = _unit(left_ND[top : top + BLOCK], device)
        for start in range(top if upper else 0, len(right_MD), BLOCK):
            cosine_BB = left_BD @ _unit(right_MD[start : start + BLOCK], device).T
            row, column = torch.nonzero(cosine_BB >= tau, as_tuple=True)
            values = cosine_BB[row, column].clamp(max=1.0).cpu().numpy()
            rows, columns = row.cpu().numpy() + top, column.cpu().numpy() + start
            keep = columns > rows if upper else np.ones(len(rows), dtype=bool)
            found.append((rows[keep], columns[keep], values[keep]))
    if not found:
        return Neighbours(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    left, right, cosine = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((right, left))
    return Neighbours(left[order], right[order], cosine[order])


def _unit(rows: NDArray[np.floating], device: str) -> torch.Tensor:
    block_BD = torch.from_numpy(rows.astype(np.float32)).to(device)
    unit_BD = block_BD / block_BD.norm(dim=1, keepdim=True)
    return torch.where(torch.isfinite(unit_BD).all(dim=1, keepdim=True), unit_BD, torch.zeros_like(unit_BD))
