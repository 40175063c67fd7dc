"""The report's charts of CLIP scores: real pairs, shuffled pairs, the threshold in use and the suggested one."""

import html
from collections.abc import Mapping, Sequence

from pipelines.flow.store.artifact import Manifest
from pipelines.s4_materialize.thresholds import ScoreThresholds
from x2vlm.data.scores.thresholds import BINS_PER_UNIT, EDGES, NUM_BINS, Suggestion, suggest_threshold

THRESHOLD_FIELDS = {"video": "min_clip_score", "image": "image_min_clip_score"}
WIDTH, HEIGHT, BASE = 420, 130, 110  # pixels; the base of the bars

STYLE = """
.real { fill: var(--mark); fill-opacity: .55; } .shuffled { fill: none; stroke: var(--ink); stroke-width: 1.2; }
.used { stroke: #b3402e; stroke-width: 2; } .suggested { stroke: #b3402e; stroke-width: 1.5; stroke-dasharray: 4 3; }
.tick { fill: var(--faint); font-size: 10px; text-anchor: middle; }
"""


def score_section(manifests: Mapping[str, Manifest]) -> list[str]:
    """One figure per score node and kind of media, with the effect of its thresholds; [] where nothing was scored."""
    thresholds = _thresholds_in_use(manifests)
    figures = [
        _figure(f"{key}, {kind}", both["real"], both["shuffled"], thresholds.get(kind))
        for key, manifest in manifests.items()
        if manifest.stage == "score"
        for kind, both in manifest.summary.get("histograms", {}).items()
    ]
    if not figures:
        return []
    text = (
        "Filled: an image with its own text. Line: an image with the text of another row, which shows the scores of "
        "wrong texts under this model. Solid threshold: the one in use. Dashed: suggested, where the fractions of real "
        "pairs kept and of shuffled pairs dropped have the greatest sum; no label is needed for it."
    )
    return ["<h2>Scores of images and texts</h2>", f"<p>{text}</p>", f'<div class="charts">{"".join(figures)}</div>']


def _thresholds_in_use(manifests: Mapping[str, Manifest]) -> dict[str, float | None]:
    """The partition's thresholds by kind of media; defaults are left out of a manifest's config, so they are added."""
    for manifest in manifests.values():
        if manifest.stage == "partition":
            fields = ScoreThresholds.model_fields
            return {kind: manifest.config.get(name, fields[name].default) for kind, name in THRESHOLD_FIELDS.items()}
    return {}


def _figure(name: str, real: Sequence[int], shuffled: Sequence[int], used: float | None) -> str:
    suggestion = suggest_threshold(real, shuffled)
    low, high = _range([*_filled(real), *_filled(shuffled)])
    top = max((count / max(sum(counts), 1) for counts in (real, shuffled) for count in counts), default=0) or 1.0

    def x(score: float) -> float:
        return (score - low) / (high - low) * WIDTH

    def y(counts: Sequence[int], place: int) -> float:
        return BASE - counts[place] / max(sum(counts), 1) / top * (BASE - 8)

    places = [place for place in range(NUM_BINS) if low <= EDGES[place] < high]
    bars = "".join(
        f'<rect class="real" x="{x(EDGES[place]):.1f}" y="{y(real, place):.1f}" '
        f'width="{x(EDGES[place + 1]) - x(EDGES[place]):.1f}" height="{BASE - y(real, place):.1f}"/>'
        for place in places
        if real[place]
    )
    steps = " ".join(f"{x(EDGES[place + side]):.1f},{y(shuffled, place):.1f}" for place in places for side in (0, 1))
    lines = "".join(
        f'<line class="{kind}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="0" y2="{BASE}"/>'
        for kind, value in (("used", used), ("suggested", suggestion.threshold if suggestion else None))
        if value is not None and low <= value <= high
    )
    marks = "".join(
        f'<text class="tick" x="{x(tick / 10):.1f}" y="{HEIGHT - 6}">{tick / 10:.1f}</text>'
        for tick in range(-10, 11)
        if low < tick / 10 < high
    )
    caption = html.escape(f"{name}: {_in_words(real, shuffled, used, suggestion)}")
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{caption}">{bars}'
        f'<polyline class="shuffled" points="{steps}"/>{lines}{marks}'
        f'<line class="axis" x1="0" y1="{BASE}" x2="{WIDTH}" y2="{BASE}"/></svg>'
        f'<figcaption style="max-width: {WIDTH}px">{caption}</figcaption></figure>'
    )


def _filled(counts: Sequence[int]) -> list[int]:
    return [place for place, count in enumerate(counts) if count]


def _range(filled: Sequence[int]) -> tuple[float, float]:
    """From the first bin with a score to the last, rounded outwards to tenths."""
    step = BINS_PER_UNIT // 10
    low, high = min(filled, default=0) // step * step, (max(filled, default=NUM_BINS - 1) // step + 1) * step
    return float(EDGES[low]), float(EDGES[high])


def _in_words(real: Sequence[int], shuffled: Sequence[int], used: float | None, suggestion: Suggestion | None) -> str:
    words = [f"{sum(real)} pairs"]
    if used is not None:
        words.append(f"threshold in use {used:g}")
    if suggestion:
        words += [
            f"suggested {suggestion.threshold:.2f}",
            f"which keeps {suggestion.kept:.1%}, drops {suggestion.shuffled_dropped:.1%} of {sum(shuffled)} shuffled",
            f"95 % kept up to {suggestion.keeps_95:.2f}, 95 % of shuffled dropped from {suggestion.drops_95:.2f}",
        ]
    return "; ".join(words)
