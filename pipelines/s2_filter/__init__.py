"""Stage 2: the paper's rules about rows, captions and concepts (X2-VLM A.1), before anything is scored.

    rows ──► read_rows ──► row rules ──► caption rules ─┐
             (checked)     box rules ──► text overlap ──┴──► rows.parquet (what is kept) + drops.parquet (all else)

A part is judged as a whole, column by column: no rule looks at rows one by one. What goes is handed on as drops with
the value and the threshold that decided, so a threshold can be argued about later without running anything. What
another threshold would do is computed from the stored input when someone asks (`pipelines.why.what_if`).

There is no rule about captions that many rows share. How often a caption occurs is a fact about a whole source, so each
part would depend on all others: adding or taking out one row would give every part a new fingerprint and run the source
again, though only what changed should. It belongs after the parts are joined, beside the other duplicates.
"""

from pipelines.s2_filter.config import FilterConfig
from pipelines.s2_filter.filter import FILTER, FILTER_DOMAINS

__all__ = ["FILTER", "FILTER_DOMAINS", "FilterConfig"]
