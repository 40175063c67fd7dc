"""Parts look things up in whole artifacts that they name: a message to a worker stays small."""

from pathlib import Path

import pytest

from pipelines.flow.stage import ArtifactReference, Count, Graph, Lookup, Node, Part, PartResult, Read, Stage
from pipelines.flow.store.store import Store
from tests.support.flow import toy
from tests.support.flow.helpers import run_all
from x2vlm.errors import CorruptArtifact


def test_a_part_looks_things_up_in_an_artifact_that_it_names(tmp_path: Path, local_store: Store):
    """The part carries the artifact's name alone; what it finds there cannot change its fingerprint."""

    def plan_lookup(config, inputs):
        rows = inputs["rows"][0]
        return [Part("all", (Read("rows", rows.parts[0].files[0]),), {}, (), (Lookup("rows", rows.reference),))]

    def look_up(config, inputs, part, out):
        artifact = inputs.artifact(part.lookup_artifacts[0].artifact)
        assert artifact is inputs.artifact(part.lookup_artifacts[0].artifact)  # its manifest is read once
        (out.path / "copy").write_bytes(inputs.local_path(artifact.part("00003").file("kept.txt")).read_bytes())
        return PartResult({"rows": Count(1, 1)})

    stage = Stage("lookup", 1, toy.FilterConfig, ("rows",), plan_lookup, look_up)
    graph = Graph(
        [*toy.toy_graph(tmp_path, ["a"]).values(), Node("lookup/a", stage, toy.FilterConfig(), {"rows": ("filter/a",)})]
    )
    result = run_all(graph, local_store)
    kept = result.nodes["filter/a"].manifest.parts[3].record
    copy = result.nodes["lookup/a"].manifest.parts[0].record
    assert copy.files[0].sha256 == kept.files[0].sha256
    assert [read.path for read in copy.reads] == ["kept.txt"]


def test_an_artifact_that_was_replaced_meanwhile_is_not_looked_into(tmp_path: Path, local_store: Store):
    event = run_all(toy.toy_graph(tmp_path, ["a"]), local_store).nodes["filter/a"]
    reference = ArtifactReference("filter/a", event.manifest_path, event.manifest_sha256)
    assert local_store.open_artifact(reference).part("00000").file("kept.txt").sha256
    for path, sha256, problem in (("x", event.manifest_sha256, "gone"), (event.manifest_path, "0" * 64, "not the one")):
        with pytest.raises(CorruptArtifact, match=problem):
            local_store.open_artifact(ArtifactReference("filter/a", path, sha256))
