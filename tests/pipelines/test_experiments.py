"""Every experiment that is shipped says what it costs, parses, and names cards and sources that exist."""

from pathlib import Path

import pytest

from pipelines.experiment import EXPERIMENTS, load_experiment
from pipelines.flow.blobs import PROJECT_ROOT
from pipelines.graph import build_graph
from x2vlm.data.cards import load_card

NAMES = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
RECIPES = [name for name in NAMES if name.startswith("base_")]


@pytest.mark.parametrize("name", NAMES)
def test_the_header_gives_command_needs_and_expectation(name: str) -> None:
    header = (EXPERIMENTS / f"{name}.yaml").read_text().split("\nsources:")[0]
    for word in ("# Run: ", "# Needs: ", "# Expect: ", f" {name}"):
        assert word in header, f"{name}: its header lacks {word!r}"


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_becomes_a_graph_once_its_files_are_there(name: str, tmp_path: Path) -> None:
    experiment = load_experiment(name)
    for source in experiment.sources.values():
        assert load_card(PROJECT_ROOT / "datasets" / f"{source.card}.yaml").reader
    (tmp_path / "open_clip_config.json").write_text("{}")
    graph = build_graph(experiment.model_copy(update={"clip_model": str(tmp_path)}))
    named = {source for stream in experiment.pretrain.data.streams for source in (*stream.sources, *stream.aux_sources)}
    assert named <= set(experiment.sources)
    assert {f"filter/{source}" for source in named} <= set(graph)
    assert f"decontaminate/{name}" in graph[f"partition/{name}"].inputs["decisions"]


def test_the_two_4m_recipes_differ_where_paper_and_release_do() -> None:
    paper, released = load_experiment("base_4m_paper"), load_experiment("base_4m_released")
    assert set(released.sources) - set(paper.sources) == {"refcoco", "gqa", "flickr_entities"}
    assert paper.filter.patch_size == 16
    assert released.filter.patch_size == 0
    policies = [one.decontaminate.rule.policy for one in (paper, released) if one.decontaminate]
    assert policies == ["strict", "paper"]
    assert paper.pretrain.data.examples.masking.prob == 0.4  # X2-VLM 3.3.1
    assert released.pretrain.data.examples.masking.prob == 0.5
