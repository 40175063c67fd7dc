"""No setting of an experiment is accepted and then without effect: it reaches its node, or it is refused by name."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pipelines.experiment import FILLED_IN, Experiment, load_experiment
from pipelines.graph import build_graph
from pipelines.idle_settings import SECTIONS
from tests.support.experiments import experiment_file
from tests.support.settings import COMPANY, at, changed, other_values, sample_values, settings_of
from x2vlm.config import parse_config, read_yaml
from x2vlm.errors import ConfigError


def parsed(values: dict[str, Any]) -> Experiment:
    return parse_config(Experiment, values, "here.yaml")


@cache
def sample() -> Experiment:
    return parsed(sample_values())


SETTINGS = {
    (section, *path): kind
    for section in (*SECTIONS, "pretrain")
    for path, kind in settings_of(type(getattr(sample(), section)))
}


def candidates(path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The sample with other values at `path`, or, where no other is valid by itself, with its company."""
    *above, name = path
    for key in (f"{path[0]}.{name}", name):
        if key in COMPANY:
            values = sample_values()
            for other, value in COMPANY[key].items():
                values = changed(values, (*above, other), value)
            yield values
            return
    for value in other_values(SETTINGS[path], at(sample(), path)):
        yield changed(sample_values(), path, value)


def fate(path: tuple[str, ...]) -> str:
    """Whether it "reaches" its node, "is refused" as replaced, "is lost", or why no other value is valid."""
    problem = "no value to try"
    for values in candidates(path):
        try:
            experiment = parsed(values)
        except ConfigError as error:
            problem = str(error)
            if any(f"  {'.'.join(path[:end])}: would be replaced" in problem for end in range(2, len(path) + 1)):
                return "is refused"
            continue
        asked = at(experiment, path)
        if asked != at(sample(), path):
            graph = build_graph(experiment)
            found = [at(graph[key].config, path[1:]) for key in graph if graph[key].stage.name == path[0]]
            joined = isinstance(asked, tuple) and any(set(asked) <= set(one) for one in found)
            return "reaches" if asked in found or joined else "is lost"
    return problem


@pytest.mark.parametrize("section", [*SECTIONS, "pretrain"])
def test_every_setting_of_every_section_reaches_its_node_or_is_refused(section: str) -> None:
    fates = {path: fate(path) for path in SETTINGS if path[0] == section}
    fates.pop(("pretrain", "start"), None)  # recorded without its path: see the tests of initial weights
    fates.pop(("pretrain", "train", "execution", "checkpoint_vision_blocks"), None)  # of the runtime: refused here
    refused = {path for path, outcome in fates.items() if outcome == "is refused"}
    assert {path: outcome for path, outcome in fates.items() if outcome not in ("reaches", "is refused")} == {}
    assert {path[:2] for path in refused} == {key for key in FILLED_IN if key[0] == section}
    assert len(fates) > len(refused)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"download": {"url_base": {"from": "http://x.invalid", "serve": "d"}}}, r"download.url_base: .*into its card"),
        ({"download": {"yt_dlp_domains": ["example.com"]}}, r"download.yt_dlp_domains: .*`terms`, into its card"),
        ({"download": {"retry": ["dns"]}}, r"download.retry: .*`retries: \[\[dns, timeout\]\]`"),
        ({"score": {"variants": True}}, r"score.variants: .*`role`"),
        ({"deduplicate": {"thresholds": {"min_clip_score": 0.1}}}, r"deduplicate.thresholds: .*`partition`"),
        ({"runtime": {"downlaod": {"num_cpus": 2}}}, r"runtime.downlaod: .*did you mean `download`"),
        ({"runtime": {"deduplicate": {"num_cpus": 2}}}, r"runtime.deduplicate: this experiment has no node of such"),
        ({"runtime": {"pretrain": {"num_cpus": 2}}}, r"runtime.pretrain.num_cpus: .*`train_runtime`"),
    ],
)
def test_what_cannot_take_effect_is_refused_with_where_it_belongs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_graph(load_experiment(str(experiment_file(tmp_path, **changes))))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"data_root": "data"}, r"sources.coco.data_root: has no effect.*`root: datasets/sample/annotations/coco`"),
        ({"media_name": "{row}.jpg"}, r"sources.coco: .*media_name has no effect without `media_root`"),
    ],
)
def test_so_is_what_a_source_says_in_vain(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_graph(parsed(changed(sample_values(), ("sources", "coco"), {"card": "sample/coco", **source})))


def test_a_filter_that_no_source_takes_is_refused() -> None:
    values = {**sample_values(), "filter": {"min_short_edge": 32, "patch_size": 0}}
    build_graph(parsed(values))
    for number, name in enumerate(values["sources"]):
        values = changed(values, ("sources", name, "filter"), {"min_short_edge": 64 + number})
    with pytest.raises(ConfigError, match=r"2 problem\(s\)\n  filter.min_short_edge: .*every source says otherwise"):
        build_graph(parsed(values))


def test_streams_that_name_no_training_source_are_told_when_the_graph_is_made() -> None:
    streams = [{"kind": "image", "batch_size": 2, "sources": ["coco", "cocoo"]}]
    with pytest.raises(ConfigError, match=r"streams name .*`cocoo`: did you mean `coco`"):
        build_graph(parsed(changed(sample_values(), ("pretrain", "data", "streams"), streams)))


def test_networks_and_ports_of_card_and_experiment_are_joined(tmp_path: Path, project_root: Path) -> None:
    card = project_root / "datasets/sample/coco.yaml"
    (tmp_path / "coco.yaml").write_text(
        f"{card.read_text(encoding='utf-8')}\nallow_networks: [10.1.0.0/16]\nallow_ports: [8899, 443]\n"
    )
    own = os.path.relpath(tmp_path / "coco", project_root / "datasets")
    values = changed(sample_values(), ("sources", "coco", "card"), own)
    values = changed(values, ("download", "allow_networks"), ["10.2.0.0/16"])
    values = changed(values, ("download", "allow_ports"), [80, 443, 8080])
    graph = build_graph(parsed(values))
    joined, other = graph["download/coco"].config, graph["download/cc3m"].config
    assert joined.model_dump()["allow_networks"] == ("10.2.0.0/16", "10.1.0.0/16")
    assert joined.model_dump()["allow_ports"] == (80, 443, 8080, 8899)
    assert (other.model_dump()["allow_networks"], other.model_dump()["allow_ports"]) == (
        ("10.2.0.0/16",),
        (80, 443, 8080),
    )


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("download: {retries: 1}\nfilter: {}\ndownload: {retries: 2}\n", "download", (1, 3)),
        ("filter:\n  patch_size: 0\n  min_short_edge: 5\n  patch_size: 16\n", "patch_size", (2, 4)),
        ("sources:\n  a: {card: x}\n  a: {card: y}\n", "a", (2, 3)),
        ("streams:\n  - {kind: image, kind: video}\n", "kind", (2, 2)),
    ],
)
def test_a_key_that_is_written_twice_is_refused_with_both_lines(
    text: str, key: str, lines: tuple[int, int], tmp_path: Path
) -> None:
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=rf"e.yaml: .*`{key}` is written in line {lines[0]} and again(.|\n)*line {lines[1]}"
    ):
        read_yaml(tmp_path / "e.yaml")
    (tmp_path / "e.yaml").write_text("one: &one {a: 1}\nother: {<<: *one, a: 2}\n")
    assert read_yaml(tmp_path / "e.yaml")["other"] == {"a": 2}
