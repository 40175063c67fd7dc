"""A later round of a download fetches what failed, and nothing that is there is touched."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.experiment import load_experiment
from pipelines.flow.run.executor import run
from pipelines.flow.run.planner import plan
from pipelines.flow.run.runner import InlineRunner
from pipelines.flow.stage import Graph, Node, SourceFile
from pipelines.flow.store.artifact import Manifest
from pipelines.flow.store.store import Store
from pipelines.graph import build_graph
from pipelines.s1_download.config import DownloadConfig
from pipelines.s1_download.download import DOWNLOAD, RETRY
from pipelines.s1_download.read import READ, ReadConfig
from pipelines.s1_download.retry import CLASSES, balance, is_retried, parse_classes
from tests.hostile.behaviours import hostile_server
from x2vlm.errors import ConfigError


def test_a_round_fetches_what_failed_and_touches_nothing(tmp_path: Path) -> None:
    with hostile_server() as server:
        paths = ["good/red", "weekdays/blue", "nowhere", "good/green", "good/gold", "good/pink"]
        (tmp_path / "pairs.tsv").write_text("".join(f"a text\t{server.base}/{path}\n" for path in paths))
        (tmp_path / "card.yaml").write_text("id: toy\n")
        store = Store(str(tmp_path / "store"))
        config = DownloadConfig(
            allow_networks=("127.0.0.1/32",),
            allow_ports=(server.endpoint[1],),
            retries=0,
            host_requests_per_second=0.0,
        )

        def downloaded(*rounds: str) -> dict[str, Manifest]:
            """Manifests of the download after these rounds, two rows a part."""
            reads = ReadConfig(reader="cc3m", source="toy", card="toy", files={"rows": "pairs.tsv"}, rows_per_file=2)
            files = {slot: (SourceFile(str(tmp_path / name), "toy"),) for slot, name in
                     {"card": "card.yaml", "files": "pairs.tsv"}.items()}  # fmt: skip
            nodes = [
                Node("read/toy", READ, reads, files),
                Node("download/toy", DOWNLOAD, config, {"rows": ("read/toy",)}),
            ]
            for number, classes in enumerate(rounds, start=1):
                earlier = tuple(node.key for node in nodes[1:])
                again = config.model_copy(update={"retry": parse_classes(classes)})
                key = f"download/toy.retry{number}"
                nodes.append(Node(key, RETRY, again, {"rows": ("read/toy",), "earlier": earlier}))
            graph = Graph(nodes)
            result = run(graph, plan(graph, store, "toy"), store, InlineRunner())
            return {key: result.nodes[key].manifest for key in graph if key.startswith("download/")}

        server.is_down = True
        first = downloaded()["download/toy"]
        assert first.counts["rows"].dropped == {"http_404": 1, "http_503": 1}
        untouched = {path: path.read_bytes() for path in (tmp_path / "store" / "parts").rglob("*") if path.is_file()}

        still_down = downloaded("dns,5xx")
        assert still_down["download/toy.retry1"].counts["rows"].dropped == {"http_503": 1}  # no success is no error
        server.is_down = False
        before = server.requests.copy()
        after = downloaded("dns,5xx", "5xx,timeout")
        asked = server.requests - before
        asked.pop("/robots.txt", None)
        assert asked == {"/weekdays/blue": 1}
        (part,) = after["download/toy.retry2"].parts
        assert part.name == "00000"
        counts = after["download/toy.retry2"].counts
        assert [(counts[unit].num_in, counts[unit].num_out) for unit in ("rows", "captions")] == [(1, 1), (1, 1)]

        assert after["download/toy"] == first
        assert all(path.read_bytes() == data for path, data in untouched.items())
        rounds = list(after.values())
        left = balance([(m.summary.get("retried", {}), m.counts["rows"].dropped) for m in rounds])
        assert left == {"http_404": 1}
        assert first.counts["rows"].num_in == sum(m.counts["rows"].num_out for m in rounds) + sum(left.values())
        records = [part.record for manifest in rounds for part in manifest.parts]
        files = [
            store.file_uri(r, f).removeprefix("file://") for r in records for f in r.files if f.path == "rows.parquet"
        ]
        keys = Counter(key for file in files for key in pq.read_table(file)["key"].to_pylist())
        assert len(keys) == 5
        assert set(keys.values()) == {1}

        before = server.requests.copy()
        assert downloaded("dns,5xx", "5xx,timeout") == after
        assert downloaded("dns,5xx", "5xx,timeout", "5xx")["download/toy.retry3"].parts == []  # nothing is left to try
        assert server.requests == before


def test_the_graph_leads_every_round_to_training_behind_what_is_there() -> None:
    plain = build_graph(load_experiment("sample"))
    experiment = load_experiment("sample")
    graph = build_graph(experiment.model_copy(update={"retries": (("dns",), ("5xx",))}))
    assert set(plain) < set(graph)
    assert graph["download/coco.retry2"].inputs == {
        "rows": ("read/coco",),
        "earlier": ("download/coco", "download/coco.retry1"),
    }
    assert graph["download/coco.retry2"].config == plain["download/coco"].config.model_copy(update={"retry": ("5xx",)})
    assert graph["filter/coco.retry1"].inputs == {"rows": ("download/coco.retry1",)}
    for key, slots in {"partition/sample": ("rows", "scores"), "pack/sample": ("media",)}.items():
        for slot in slots:
            before, after = plain[key].inputs[slot], graph[key].inputs[slot]
            assert after[: len(before)] == before
            assert len(after) == 3 * len(before)
    for name in experiment.evaluate:
        assert len(graph[f"evaluate/{name}"].inputs["rows"]) == len(graph[f"evaluate/{name}"].inputs["media"]) == 3
    for key, node in plain.items():
        if key.split("/")[0] in ("read", "download", "filter", "score"):
            assert graph[key] == node


def test_classes_are_named_or_refused() -> None:
    assert parse_classes(" timeout,dns,dns ") == ("dns", "timeout")
    for text in ("", ",", "dns,tiemout"):
        with pytest.raises(ConfigError, match="timeout"):
            parse_classes(text)
    assert is_retried("http_503", ["dns", "5xx"])
    assert not is_retried("http_404", CLASSES)
    assert not is_retried("opted_out", CLASSES)
    assert not is_retried("robots_disallowed", CLASSES)
    assert not is_retried("kept", CLASSES)


@given(st.lists(st.sampled_from(["kept", "dns_failed", "http_500", "http_404"]), max_size=30), st.data())
def test_rounds_add_up(verdicts: list[str], data: st.DataObject) -> None:
    """Rows that are tried again leave the old tally and enter the new one, whatever becomes of them."""
    rounds = [({}, Counter(v for v in verdicts if v != "kept"))]
    for _ in range(3):
        tried = [index for index, verdict in enumerate(verdicts) if is_retried(verdict, ["dns", "5xx"])]
        retried = Counter(verdicts[index] for index in tried)
        for index in tried:
            verdicts[index] = data.draw(st.sampled_from(["kept", "dns_failed", "http_500", "http_404"]))
        rounds.append((retried, Counter(verdicts[index] for index in tried if verdicts[index] != "kept")))
        assert balance(rounds) == Counter(verdict for verdict in verdicts if verdict != "kept")
