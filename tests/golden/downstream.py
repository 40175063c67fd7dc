"""Checks of the tasks after pre-training, one line a kind."""

from tests.golden import downstream_captioning
from tests.golden.differences import Check

DOWNSTREAM_CHECKS: dict[str, Check] = {
    "captioning": downstream_captioning.check_captioning,
}
