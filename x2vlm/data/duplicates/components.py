"""Which rows have to be seen together: connected components of looks, found without looking at whole rows.

A *node* is a 64-bit name of what an image looks like (`compact_rows.node_of`). Two nodes are linked if some method
could match rows of them. Components may be coarser than the matches (a link that no thumbnail confirms, two nodes with
one name) and are never finer, so `find_duplicates` of the rows of whole components finds what it finds among all rows:
a star has all its rows in one component.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from x2vlm.data.duplicates.hamming import Table, table_pairs
from x2vlm.data.duplicates.sketches import Words, as_words, from_words, mixed, sketch_distance, sketch_limit

MANY_ALIKE = 1 << 16  # pairs of looks of two hashes; if there are more they are linked without a comparison
PIECE = 1 << 20  # pairs of looks compared at a time

Nodes = NDArray[np.uint64]
Indices = NDArray[np.int64]


class Links(NamedTuple):
    """Pairs of linked nodes."""

    left: Nodes
    right: Nodes


NO_LINKS = Links(np.empty(0, np.uint64), np.empty(0, np.uint64))


class Forest:
    """The components of numbered items while links between them come in; the root is the smallest number."""

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size)

    def join(self, left: Indices, right: Indices) -> None:
        """Link `left[i]` with `right[i]`."""
        while len(left):
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            left, right = left[apart], right[apart]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))

    def roots(self, items: Indices) -> Indices:
        found = self._parent[items]
        while True:
            above = self._parent[found]
            if np.array_equal(above, found):
                break
            found = above
        self._parent[items] = found
        return found

    def links(self) -> tuple[Indices, Indices]:
        """Every item that is not the root of its component, and that root."""
        items = np.flatnonzero(self._parent != np.arange(len(self._parent)))
        return items, self.roots(items)


class Looks(NamedTuple):
    """Informative hashes with the sketches of their thumbnails, and their nodes; one kind of media."""

    phash: Words
    sketch_first: Words
    sketch_second: Words
    node: Nodes


def looks_of(kind: int, phash: Words, sketch: NDArray[np.int8]) -> Looks:
    """The look of each image: its node is a hash of all that `Looks` has of it."""
    first, second = as_words(sketch)
    return Looks(phash, first, second, mixed(kind, phash, first, second))


def near_links(looks: Looks, tables: list[Table], radius: int, min_correlation: float, equal: bool) -> Links:
    """Links between looks whose hashes are within `radius` bits by one of `tables`, and whose sketches are near enough.

    With `equal` those of equal hashes too. Links that others imply are left out. Where more than MANY_ALIKE pairs of
    looks have two hashes, they are all linked: comparing each with each would take time quadratic in their number.
    Memory is a small multiple of that of `looks`.
    """
    order = np.lexsort((looks.node, looks.phash))
    looks = Looks(*(column[order] for column in looks))
    distinct = np.ones(len(order), dtype=bool)
    distinct[1:] = looks.node[1:] != looks.node[:-1]
    looks = Looks(*(column[distinct] for column in looks))
    values, starts = np.unique(looks.phash, return_index=True)
    starts = np.append(starts, len(looks.phash))
    sketch, limit, forest = from_words(*looks[1:3]), sketch_limit(min_correlation), Forest(len(looks.phash))

    def compare(left: Indices, right: Indices) -> None:
        near = sketch_distance(sketch[left], sketch[right]) <= limit
        forest.join(left[near], right[near])

    def compare_groups(left: Indices, right: Indices) -> None:
        """All looks of value number left[i] with all of number right[i]."""
        ours, theirs = starts[left + 1] - starts[left], starts[right + 1] - starts[right]
        many = ours * theirs > MANY_ALIKE
        for a, b in zip(left[many], right[many], strict=True):
            every = np.concatenate([np.arange(starts[a], starts[a + 1]), np.arange(starts[b], starts[b + 1])])
            forest.join(every[:-1], every[1:])
        left, right, ours, theirs = left[~many], right[~many], ours[~many], theirs[~many]
        ends = np.cumsum(ours * theirs)
        cuts: Iterable[int] = (
            np.searchsorted(ends, np.arange(PIECE, ends[-1] + PIECE, PIECE), "right") if len(ends) else []
        )
        low = 0
        for cut in cuts:
            high = max(int(cut), low + 1)
            piece, low = slice(low, high), high
            size = (ours * theirs)[piece]
            pair = np.repeat(np.arange(len(size)), size)
            within = np.arange(len(pair)) - np.repeat(np.cumsum(size) - size, size)
            width = theirs[piece][pair]
            compare(starts[left[piece]][pair] + within // width, starts[right[piece]][pair] + within % width)

    if equal:
        shared = np.flatnonzero(np.diff(starts) > 1)
        compare_groups(shared, shared)
    for table in tables:
        for left, right, _ in table_pairs(values, table, radius):
            compare_groups(np.searchsorted(values, left), np.searchsorted(values, right))
    items, roots = forest.links()
    return Links(looks.node[items], looks.node[roots])


def shared_links(value: NDArray[np.uint64], node: Nodes) -> Links:
    """Links between nodes that have one of the values in common: a chain of the nodes of each value."""
    order = np.lexsort((node, value))
    value, node = value[order], node[order]
    linked = (value[1:] == value[:-1]) & (node[1:] != node[:-1])
    return Links(node[:-1][linked], node[1:][linked])


def component_labels(links: Links) -> tuple[Nodes, Nodes]:
    """Every linked node, sorted, and the smallest node of its component. Memory: about 60 bytes a link."""
    nodes, numbers = np.unique(np.concatenate(links), return_inverse=True)
    forest, half = Forest(len(nodes)), len(links.left)
    forest.join(numbers[:half], numbers[half:])
    return nodes, nodes[forest.roots(np.arange(len(nodes)))]


def busy_rows(node: Nodes, labelled: Nodes, label: Nodes) -> tuple[Indices, Nodes]:
    """The rows that may match another one, and the name of their component; of all rows with one of these nodes.

    `labelled` are sorted nodes and `label` their components. A row is busy if its node has a label, or other rows.
    """
    distinct, number, count = np.unique(node, return_inverse=True, return_counts=True)
    place = np.searchsorted(labelled, distinct)
    known = place < len(labelled)
    known[known] = labelled[place[known]] == distinct[known]
    name = distinct.copy()
    name[known] = label[place[known]]
    rows = np.flatnonzero((known | (count > 1))[number])
    return rows, name[number[rows]]
