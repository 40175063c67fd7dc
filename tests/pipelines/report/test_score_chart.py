"""The report's histograms: what they show is what the manifests count, and nothing is shown that is not there."""

import re
from typing import Any

from pipelines.flow.store.artifact import Manifest
from pipelines.report.page import render_report
from x2vlm.data.scores.thresholds import score_histogram


def manifest(node: str, config: dict[str, Any], summary: dict[str, Any]) -> Manifest:
    values = {"node": node, "stage": node.split("/")[0], "version": 1, "fingerprint": "f", "config": config}
    counts = {"rows": {"num_in": 1, "num_out": 1, "dropped": {}}}
    return Manifest.model_validate(
        {**values, "inputs": [], "parts": [], "counts": counts, "summary": summary, "root": "r" * 64, "provenance": {}}
    )


def page(config: dict[str, Any]) -> str:
    both = {"real": score_histogram([0.805] * 3 + [0.705]), "shuffled": score_histogram([0.105] * 8)}
    scored = manifest("score/<web>", {}, {"histograms": {"video": both}})
    manifests = {"score/<web>": scored, "partition/x": manifest("partition/x", config, {})}
    return render_report("x", manifests, [], [])


def test_bars_and_threshold_lines_are_where_the_numbers_say() -> None:
    text = page({"min_clip_score": 0.5})
    bars = re.findall(r'<rect class="real" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', text)
    # The axis reaches from 0.1 to 0.9, the full tenths around all scores: 420 px for 0.8.
    assert [round(float(x) / 420 * 0.8 + 0.1, 2) for x, _, _, _ in bars] == [0.7, 0.8]
    low, high = (float(height) for _, _, _, height in bars)
    assert abs(high / low - 3) < 0.02
    lines = dict(re.findall(r'<line class="(used|suggested)" x1="([\d.]+)"', text))
    assert round(float(lines["used"]) / 420 * 0.8 + 0.1, 2) == 0.5
    assert 0.11 <= round(float(lines["suggested"]) / 420 * 0.8 + 0.1, 2) <= 0.7
    for words in ("4 pairs", "threshold in use 0.5;", "keeps 100.0%", "drops 100.0% of 8 shuffled"):
        assert words in text


def test_the_partition_s_default_counts_as_in_use_and_none_does_not() -> None:
    assert "threshold in use 0.25;" in page({})
    assert "in use" not in page({"min_clip_score": None}).split("<figure>")[1]


def test_the_page_stays_safe_and_runs_without_scores_have_no_section() -> None:
    text = page({})
    assert "score/&lt;web&gt;" in text
    assert "<web>" not in text
    assert not re.search(r"(?:src|href)=|url\(", text)
    assert "Scores of images" not in render_report("x", {"read/a": manifest("read/a", {}, {})}, [], [])
