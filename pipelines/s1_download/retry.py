"""Retrying only what failed: a later round of a download whose parts hold nothing but the rows it tried again.

A round is a node of its own, `download/<source>.retry1`, which reads the ledgers of the rounds before it. Parts that
are there are never touched. A row that a round tries again no longer counts as dropped by the round before:
`balance` adds rounds up.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from x2vlm.config import did_you_mean
from x2vlm.errors import ConfigError

RETRY_MARK = ".retry"  # between a source and the number of a later round

# What `--retry` may name. Rules are matched whole.
CLASSES: Mapping[str, str] = {
    "dns": "dns_failed",
    "connect": "connect_failed|connection_reset|truncated_body|tls_failed|host_unavailable",
    "timeout": "deadline_exceeded|part_deadline_exceeded|too_slow|connect_failed|host_unavailable",
    "5xx": r"http_5\d\d|robots_unreachable",
    "429": "http_429",
    "worker": "worker_died|out_of_memory",
}


def round_names(source: str, num_retries: int) -> list[str]:
    """The rounds in which a source is downloaded: the first, and what each later one adds to it, as nodes name them."""
    return [source, *(f"{source}{RETRY_MARK}{number}" for number in range(1, num_retries + 1))]


def source_of(branch: str) -> str:
    """The source that a round, named as by `round_names`, belongs to."""
    return branch.partition(RETRY_MARK)[0]


def parse_classes(text: str) -> tuple[str, ...]:
    """The classes named in "dns,timeout,5xx", sorted; ConfigError for one that is none."""
    names = sorted({name.strip() for name in text.split(",")} - {""})
    if unknown := [name for name in names if name not in CLASSES]:
        hints = " ".join(did_you_mean(name, CLASSES) for name in unknown)
        raise ConfigError(f"retry: no class of failures {', '.join(unknown)}; {hints}")
    if not names:
        raise ConfigError(f"retry: name at least one class of failures: {', '.join(CLASSES)}")
    return tuple(names)


def is_retried(rule: str, classes: Iterable[str]) -> bool:
    """Whether a row dropped by `rule` belongs to one of `classes`."""
    return any(re.fullmatch(CLASSES[name], rule) for name in classes)


def balance(rounds: Sequence[tuple[Mapping[str, int], Mapping[str, int]]]) -> dict[str, int]:
    """Rows still dropped after all rounds, by rule. Each round is (retried, dropped): the rules that its rows had been
    dropped by before, and those they were dropped by now.

    Rows of the first round = rows kept by all rounds + the sum of what this gives.
    """
    left: Counter[str] = Counter()
    for retried, dropped in rounds:
        left.subtract(retried)
        left.update(dropped)
    if negative := {rule: number for rule, number in left.items() if number < 0}:
        raise ConfigError(f"retry: rounds that do not follow on each other: {negative}")
    return {rule: left[rule] for rule in sorted(left) if left[rule]}
