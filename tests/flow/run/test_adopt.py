"""Data that is already there becomes an artifact like any other, and never hides where it came from."""

from pathlib import Path

import pytest

from pipelines.flow.run.adopt import adopt
from pipelines.flow.stage import Count
from pipelines.flow.store.parts import verify_files
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import run_all
from x2vlm.errors import ConfigError, SourceUnavailable, StageFailed


def existing(tmp_path: Path) -> dict[str, dict[str, Path]]:
    path = tmp_path / "old" / "kept.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("kept long ago")
    return {f"{number:05d}": {"kept.txt": path} for number in range(4)}


COUNTS = {f"{number:05d}": {"rows": Count(3, 1, {"too_short": 2})} for number in range(4)}


def test_adopted_data_is_used_and_marked(tmp_path: Path, store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    run_all(graph, store, targets=["read/a"])
    summaries = {name: {"longest": 13} for name in COUNTS}
    manifest = adopt(graph, store, "exp", "filter/a", existing(tmp_path), COUNTS, {"git_sha": "abc"}, summaries)
    assert manifest.provenance["adopted"] is True
    assert manifest.provenance["git_sha"] == "abc"
    assert manifest.provenance["adopted_from"]["00000"] == {"kept.txt": str(tmp_path / "old" / "kept.txt")}
    assert all(part.record.summary["adopted"] is True for part in manifest.parts)
    assert manifest.counts["rows"].to_count() == Count(12, 4, {"too_short": 8})
    for part in manifest.parts:
        verify_files(store.blobs, part.record)
    (tmp_path / "old" / "kept.txt").write_text("changed by its owner")
    result = run_all(graph, store)
    assert result.nodes["filter/a"].produced is False
    assert result.nodes["join/all"].manifest.counts["rows"].num_in == 4


def test_what_does_not_fit_the_node_is_refused(tmp_path: Path, local_store: Store):
    graph = toy.toy_graph(tmp_path, ["a"])
    files = existing(tmp_path)
    with pytest.raises(ConfigError, match="read/a is not finished"):
        adopt(graph, local_store, "exp", "filter/a", files, COUNTS)
    run_all(graph, local_store, targets=["read/a"])
    with pytest.raises(ConfigError, match="files are given for parts"):
        adopt(graph, local_store, "exp", "filter/a", {"00000": files["00000"]}, COUNTS)
    with pytest.raises(ConfigError, match="counts are given for parts"):
        adopt(graph, local_store, "exp", "filter/a", files, {})
    with pytest.raises(StageFailed, match="3 in, but 1 out"):
        adopt(graph, local_store, "exp", "filter/a", files, {**COUNTS, "00000": {"rows": Count(3, 1)}})
    with pytest.raises(ConfigError, match="no file name inside a part"):
        adopt(graph, local_store, "exp", "filter/a", {**files, "00000": {"../x": tmp_path / "a.txt"}}, COUNTS)
    with pytest.raises(SourceUnavailable, match=r"gone\.txt"):
        adopt(graph, local_store, "exp", "filter/a", {**files, "00000": {"x": tmp_path / "gone.txt"}}, COUNTS)
    assert local_store.read_ref("exp", "filter/a") is None
    assert local_store.blobs.find("tmp") == []
