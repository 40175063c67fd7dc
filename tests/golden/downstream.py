"""The check of every kind of downstream case, by the name of its folder."""

from tests.golden.differences import Check
from tests.golden.downstream_matching import check_grounding, check_retrieval

DOWNSTREAM_CHECKS: dict[str, Check] = {
    "grounding": check_grounding,
    "retrieval": check_retrieval,
}
