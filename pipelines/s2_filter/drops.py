"""The drops of rules as a table of DROP_SCHEMA: built column by column, in reading order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from x2vlm.data.rules.row_filters import Verdict
from x2vlm.samples import DROP_SCHEMA


@dataclass(frozen=True)
class Dropped:
    """Rows, captions or concepts that one rule dropped."""

    unit: str
    rule: str
    step: int  # order of the rules in the table
    row: np.ndarray  # row number in the part
    position: np.ndarray | None = None  # in its row; None for rows
    item: pa.Array | str = ""
    value: np.ndarray | None = None
    threshold: float | None = None
    reason: pa.Array | str = ""

    def __len__(self) -> int:
        return len(self.row)


def drops_table(rows: pa.Table, dropped: Sequence[Dropped]) -> pa.Table:
    """All drops sorted by row of `rows`, then by step, then by position in the row."""
    dropped = [each for each in dropped if len(each)]
    if not dropped:
        return DROP_SCHEMA.empty_table()
    row = np.concatenate([each.row for each in dropped])
    step = np.repeat([each.step for each in dropped], [len(each) for each in dropped])
    position = np.concatenate(
        [np.zeros(len(each), int) if each.position is None else each.position for each in dropped]
    )
    order = pa.array(np.lexsort((position, step, row)))
    whose = rows.select(["key", "source", "source_row"]).take(pa.array(row))
    columns = {
        **dict(zip(whose.column_names, whose.columns, strict=True)),
        "stage": _repeat("filter", len(row)),
        "rule": pa.concat_arrays([_repeat(each.rule, len(each)) for each in dropped]),
        "unit": pa.concat_arrays([_repeat(each.unit, len(each)) for each in dropped]),
        "item": pa.concat_arrays([_texts(each.item, len(each)) for each in dropped]),
        "value": pa.concat_arrays([_values(each) for each in dropped]),
        "threshold": pa.concat_arrays([pa.repeat(_float(each.threshold), len(each)) for each in dropped]),
        "reason": pa.concat_arrays([_texts(each.reason, len(each)) for each in dropped]),
    }
    return pa.table([columns[name] for name in DROP_SCHEMA.names], schema=DROP_SCHEMA).take(order)


def count_rules(drops: pa.Table, unit: str) -> dict[str, int]:
    """How many drops of `unit` each rule made, rules in alphabetical order."""
    rules = drops["rule"].filter(pc.equal(drops["unit"], unit))
    counts = {pair["values"]: pair["counts"] for pair in pc.value_counts(rules).to_pylist()}
    return dict(sorted(counts.items()))


def of_verdict(
    verdict: Verdict,
    is_dropped: np.ndarray,
    *,
    unit: str,
    step: int,
    row: np.ndarray,
    position: np.ndarray | None = None,
    item: pa.Array | str = "",
) -> list[Dropped]:
    """The drops of `verdict`, where `is_dropped`; items without a value get a rule of their own.

    `row`, `position` and `item` have the length of the verdict, as `is_dropped` has.
    """
    unknown = verdict.is_unknown()
    found = []
    for rule, chosen, reason in (
        (verdict.rule, is_dropped & ~unknown, _reasons(verdict, is_dropped & ~unknown)),
        (verdict.unknown_rule, is_dropped & unknown, verdict.unknown_reason),
    ):
        if chosen.any():
            mask = pa.array(chosen)
            found.append(
                Dropped(
                    unit=unit,
                    rule=rule,
                    step=step,
                    row=row[chosen],
                    position=None if position is None else position[chosen],
                    item=item if isinstance(item, str) else item.filter(mask),
                    value=verdict.value[chosen],
                    threshold=verdict.threshold,
                    reason=reason,
                )
            )
    return found


def join_texts(*parts: pa.Array | str | np.ndarray) -> pa.Array:
    """Texts and numbers concatenated entry by entry, numbers in their shortest form up to four decimals."""
    written = [
        pc.round(pa.array(part), ndigits=4).cast(pa.string()) if isinstance(part, np.ndarray) else part
        for part in parts
    ]
    return pc.binary_join_element_wise(*written, "", null_handling="replace", null_replacement="nothing")


def _reasons(verdict: Verdict, chosen: np.ndarray) -> pa.Array | str:
    """The comparison in readable form."""
    if verdict.labels is not None:
        return join_texts("'", verdict.labels.filter(pa.array(chosen)), f"' {verdict.reason}".rstrip())
    if verdict.reason or verdict.threshold is None:
        return verdict.reason
    return join_texts(verdict.value[chosen], f" against {verdict.threshold:g}")


def _texts(texts: pa.Array | str, count: int) -> pa.Array:
    return _repeat(texts, count) if isinstance(texts, str) else pc.fill_null(texts.cast(pa.string()), "")


def _repeat(text: str, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), count)


def _float(number: float | None) -> pa.Scalar:
    return pa.scalar(number, pa.float64())


def _values(dropped: Dropped) -> pa.Array:
    """The compared values; null if non-finite."""
    if dropped.value is None:
        return pa.nulls(len(dropped), pa.float64())
    return pa.array(dropped.value, pa.float64(), mask=~np.isfinite(dropped.value))
