"""Stage 2: the paper's rules about rows, captions and concepts (X2-VLM A.1), before anything is scored.

    rows ──► read_rows ──► row rules ──► caption rules ─┐
             (checked)     box rules ──► text overlap ──┴──► rows.parquet (kept rows) + drops.parquet (all else)

A part is filtered as a whole, column by column: no rule iterates over rows. Drops are recorded with the value and the
threshold that decided, so thresholds can be reviewed later without running anything. The effect of another threshold is
computed from the stored input on request (`pipelines.why.what_if`).

There is no rule about captions that many rows share. The frequency of a caption is a property of the whole source, so
each part would depend on all others: adding or removing one row would give every part a new fingerprint and run the
whole source again. That rule belongs after the parts are joined, with the other duplicates (`deduplicate`).
"""

from pipelines.s2_filter.config import FilterConfig
from pipelines.s2_filter.filter import FILTER, FILTER_DOMAINS

__all__ = ["FILTER", "FILTER_DOMAINS", "FilterConfig"]
