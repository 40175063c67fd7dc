"""The cost of a sample against other loaders. CPU seconds, medians of interleaved rounds, never wall time."""

import cv2
import pytest
import torch

from tests.benchmarks.loader import SIZES, Costs, describe, measure
from tests.benchmarks.loader_corpus import write_corpus


@pytest.fixture(scope="module", params=SIZES)
def costs(request, tmp_path_factory) -> tuple[str, Costs]:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    corpus = write_corpus(tmp_path_factory.mktemp("corpus"), 600, **SIZES[request.param])
    found = measure(corpus, num_batches=8, rounds=5)
    print(describe(request.param, corpus, found))
    return request.param, found


@pytest.mark.slow
def test_loading_costs_a_fraction_of_the_references_way(costs):
    size, found = costs
    assert found.reference >= {"256 px short edge": 2.5, "500 px long edge": 1.5}[size] * found.ours
    # Including augmentation and normalisation on a CPU, which a GPU would do.
    assert found.reference >= 1.5 * found.all_of_ours


@pytest.mark.slow
def test_exact_order_costs_nothing_beside_webdataset(costs):
    _, found = costs
    assert found.webdataset >= found.ours
