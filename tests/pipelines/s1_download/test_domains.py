"""Which domains are flagged: the arithmetic against scipy, and a source one of whose domains was bought."""

import hashlib
import random
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from pipelines.experiment import Experiment
from pipelines.flow.stage import Input, InputPart, PartResult, part_fingerprint
from pipelines.graph import build_graph
from pipelines.report.page import render_report
from pipelines.s1_download.child.protocol import Result
from pipelines.s1_download.domains import (
    DOMAIN_COUNTS,
    DOMAINS,
    PART_SCHEMA,
    DomainCountsConfig,
    DomainsConfig,
    domain_table,
    lower_tail,
)
from pipelines.s1_download.download import DOWNLOAD, DownloadConfig
from pipelines.s2_filter import FILTER_DOMAINS, FilterConfig
from tests.hostile.behaviours import hostile_server
from tests.hostile.payloads import jpeg
from tests.support.flow_helpers import artifact_input, folder_bytes, read_rows, run_stage_part
from x2vlm.config import parse_config
from x2vlm.data.rules.domains import registered_domain
from x2vlm.samples import Caption, Sample, sample_key, sample_table, write_table


@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0.01, 0.99))
def test_the_tail_is_the_binomial_one(trials: int, fraction: float, probability: float) -> None:
    successes = int(fraction * trials)
    if successes < trials * probability:
        assert lower_tail(successes, trials, probability) == pytest.approx(
            binom.cdf(successes, trials, probability), rel=1e-8, abs=1e-300
        )
    else:
        assert lower_tail(successes, trials, probability) == 1.0


@pytest.mark.parametrize(("successes", "probability", "tail"), [(0, 0.0, 1.0), (5, 1.0, 1.0), (4, 1.0, 0.0)])
def test_the_tail_at_its_ends(successes: int, probability: float, tail: float) -> None:
    assert lower_tail(successes, 5, probability) == tail


def judge(tmp_path: Path, parts: list[dict[str, tuple[int, int]]], **config: Any) -> tuple[PartResult, Path]:
    """The stage on parts of (match, mismatch) by domain."""
    folders = {}
    for number, counts in enumerate(parts):
        folder = tmp_path / f"part-{number}"
        folder.mkdir()
        rows = [
            {
                "domain": domain,
                "rows": sum(pair),
                "fetched": sum(pair),
                "match": pair[0],
                "mismatch": pair[1],
                "repeated": [],
            }
            for domain, pair in counts.items()
        ]
        write_table(PART_SCHEMA.empty_table().from_pylist(rows, schema=PART_SCHEMA), folder / "domains.parquet")
        folders[f"{number:05d}"] = folder
    (part,) = DOMAINS.plan_parts(DomainsConfig(**config), {"downloads": (artifact_input("download/a", folders),)})
    return run_stage_part(DOMAINS, DomainsConfig(**config), part, tmp_path / "out"), tmp_path / "out"


def flagged(out: Path) -> list[str]:
    return [row["domain"] for row in read_rows(out, "flagged.parquet")]


def test_counts_add_up_over_parts_and_a_collapsed_domain_is_flagged(tmp_path: Path) -> None:
    parts = [
        {"fine.com": (450, 50), "bought.com": (1, 14), "small.com": (0, 9)},
        {"bought.com": (0, 10), "fine.com": (450, 50)},
    ]
    result, out = judge(tmp_path, parts)
    assert flagged(out) == ["bought.com"]  # nine rows of small.com are too few to say anything
    rows = {row["domain"]: row for row in read_rows(out, "domains.parquet")}
    assert [rows["bought.com"][name] for name in ("rows", "match", "mismatch")] == [25, 1, 24]
    assert rows["bought.com"]["others_match_rate"] == pytest.approx(900 / 1009)
    assert rows["bought.com"]["p_value"] == pytest.approx(binom.cdf(1, 25, 900 / 1009))
    assert rows["small.com"]["p_value"] is None
    assert result.counts["rows"].num_in == 1034
    assert result.summary["num_flagged"] == 1
    assert result.summary["hash_checks"] == {"match": 901, "mismatch": 133}


def test_a_low_rate_is_no_flag_where_all_are_low_or_where_it_is_only_a_little_lower(tmp_path: Path) -> None:
    for number, parts in enumerate(
        [
            [{"a.com": (10, 90), "b.com": (10, 90), "c.com": (9, 91)}],  # a list whose hashes are stale everywhere
            [{"a.com": (9000, 1000), "b.com": (700, 300)}],  # significant (p < 1e-80), but not half
            [{"only.com": (0, 500)}],  # nothing to compare it with
            [{"a.com": (0, 0), "b.com": (0, 0)}],
        ]
    ):
        (tmp_path / str(number)).mkdir()
        assert flagged(judge(tmp_path / str(number), parts)[1]) == []


def test_luck_alone_flags_nobody(tmp_path: Path) -> None:
    """2,000 domains with one match rate of 85 %, 20 to 50 rows each."""
    matches = {
        f"d{index}.com": (int(binom.ppf((index * 7919 % 2000 + 0.5) / 2000, 20 + index % 31, 0.85)), 20 + index % 31)
        for index in range(2000)
    }
    _, out = judge(tmp_path, [{domain: (match, checked - match) for domain, (match, checked) in matches.items()}])
    assert flagged(out) == []


def test_the_table_of_a_part_counts_by_the_published_url() -> None:
    samples = [
        Sample(str(i), "s", str(i), "train", "image", url)
        for i, url in enumerate(
            ["http://a.x.com/1", "http://b.x.com/2", "http://b.x.com/2", "http://y.com/1", "http://y.com/2"]
        )
    ]
    same = Result(0, "not_an_image", final_url="http://parking.com", bytes=5, hashes={"sha256": "aa"})
    table = domain_table(samples, [same, same, same, same, Result(0, "http_404")], ["match", "mismatch", "", "", ""])
    assert table.to_pylist() == [
        {
            "domain": "x.com",
            "rows": 3,
            "fetched": 3,
            "match": 1,
            "mismatch": 1,
            "repeated": [{"sha256": "aa", "num_urls": 2}],
        },
        {"domain": "y.com", "rows": 2, "fetched": 1, "match": 0, "mismatch": 0, "repeated": []},
    ]


def rgb(number: int) -> str:
    return f"rgb({4 * number},{255 - 4 * number},0)"


def test_a_domain_that_was_bought_is_found_and_its_rows_are_dropped_on_request(tmp_path: Path) -> None:
    """Three sites of 40 images; one of them shows other images than it did, a second one the same for all."""
    addresses = {"127.0.0.2": "honest", "127.0.0.3": "bought", "127.0.0.4": "gone"}
    with ExitStack() as stack:
        servers = {name: stack.enter_context(hostile_server(address)) for address, name in addresses.items()}
        samples = []
        for name, server in servers.items():
            for number in range(40):
                path = "good" if name == "gone" else f"good/{rgb(number)}"
                url = f"{server.base}/{path}" + (f"?{number}" if name == "gone" else "")
                shown = jpeg(colour="teal" if name == "gone" else rgb(number + 20 * (name == "bought")))
                published = "" if name == "gone" else f"md5:{hashlib.md5(shown).hexdigest()}"
                row = f"{name}-{number}"
                sample = Sample(sample_key("t", row), "t", row, "train", "image", url, (Caption("a test"),))
                samples.append(replace(sample, published_hash=published))
        (tmp_path / "read").mkdir()
        write_table(sample_table(samples), tmp_path / "read" / "rows-00000.parquet")
        ports = tuple(server.endpoint[1] for server in servers.values())
        config = DownloadConfig(
            allow_networks=("127.0.0.0/8",), allow_ports=ports, host_requests_per_second=0, reads_robots=False
        )
        downloads = {}
        for part in DOWNLOAD.plan_parts(config, {"rows": (artifact_input("read/t", {"all": tmp_path / "read"}),)}):
            run_stage_part(DOWNLOAD, config, part, tmp_path / "download" / part.name)
            downloads[part.name] = tmp_path / "download" / part.name
    (part,) = DOMAINS.plan_parts(DomainsConfig(), {"downloads": (artifact_input("download/t", downloads),)})
    result = run_stage_part(DOMAINS, DomainsConfig(), part, tmp_path / "domains")
    assert flagged(tmp_path / "domains") == ["127.0.0.3"]
    assert result.summary["hash_checks"] == {"match": 40, "mismatch": 40}
    teal = hashlib.sha256(jpeg()).hexdigest()
    assert result.summary["repeated"] == [{"domain": "127.0.0.4", "sha256": teal, "num_urls": 40}]

    inputs = {
        "rows": (artifact_input("download/t", downloads),),
        "flagged": (artifact_input("domains/t", {"all": tmp_path / "domains"}),),
    }
    config = FilterConfig(min_short_edge=None)
    dropped: Counter[str] = Counter()
    for part in FILTER_DOMAINS.plan_parts(config, inputs):
        kept = run_stage_part(FILTER_DOMAINS, config, part, tmp_path / "filter" / part.name).counts["rows"]
        dropped.update(kept.dropped)
        rows = read_rows(tmp_path / "filter" / part.name, "rows.parquet")
        assert not [row for row in rows if row["source_row"].startswith("bought")]
    assert dropped == {"flagged_domain": 40}


def test_the_report_shows_what_was_found_with_names_escaped() -> None:
    from pipelines.flow.store.artifact import Manifest

    row = {"domain": "<b>.com", "match": 1, "mismatch": 24, "others_match_rate": 0.9, "p_value": 1e-20}
    summary = {"flagged": [row], "repeated": [{"domain": "x.com", "sha256": "ab", "num_urls": 40}]}
    counts = {"rows": {"num_in": 1, "num_out": 1, "dropped": {}}}
    manifest = Manifest.model_validate(
        {
            "node": "domains/a",
            "stage": "domains",
            "version": 1,
            "fingerprint": "f",
            "config": {},
            "inputs": [],
            "parts": [],
            "counts": counts,
            "summary": summary,
            "root": "r" * 64,
            "provenance": {},
        }
    )
    page = render_report("x", {"domains/a": manifest}, [], [])
    assert "&lt;b&gt;.com" in page
    assert "1 of 25" in page
    assert "<b>.com" not in page


def test_parts_without_a_table_say_nothing(tmp_path: Path) -> None:
    adopted = Input("download/a", "root", (InputPart("00000", ()),))
    (part,) = DOMAINS.plan_parts(DomainsConfig(), {"downloads": (adopted,)})
    assert run_stage_part(DOMAINS, DomainsConfig(), part, tmp_path / "out").counts["rows"].num_in == 0
    assert pq.read_table(tmp_path / "out" / "flagged.parquet").num_rows == 0


def test_an_unchanged_list_of_flagged_domains_leaves_the_filter_alone(tmp_path: Path) -> None:
    """Other counts make another domains.parquet, but the filter reads the names only."""
    rows = tmp_path / "rows"
    rows.mkdir()
    write_table(sample_table([]), rows / "rows.parquet")
    fingerprints, tables = set(), set()
    for number, bought in enumerate([(0, 30), (1, 40)]):
        (tmp_path / str(number)).mkdir()
        _, out = judge(tmp_path / str(number), [{"fine.com": (900, 100), "bought.com": bought}])
        tables.add((out / "domains.parquet").read_bytes())
        inputs = {
            "rows": (artifact_input("download/a", {"00000": rows}),),
            "flagged": (artifact_input("domains/a", {"all": out}),),
        }
        (part,) = FILTER_DOMAINS.plan_parts(FilterConfig(), inputs)
        fingerprints.add(part_fingerprint(FILTER_DOMAINS, FilterConfig(), part))
    assert (len(tables), len(fingerprints)) == (2, 1)


@pytest.mark.parametrize("decision", ["report", "drop"])
def test_the_graph_has_a_domains_node_and_the_filter_reads_it_only_to_drop(decision: str) -> None:
    values = {
        "name": "x",
        "sources": {"a": {"card": "pretrain/cc12m", "data_root": "/data"}},
        "retries": [["dns"]],
        "domains": {"flagged_domains": decision},
        "partition": {"num_shards": 1},
        "vocabulary": "vocab.txt",
    }
    graph = build_graph(parse_config(Experiment, values, "test"))
    assert graph["domains/a"].inputs == {"downloads": ("download/a", "download/a.retry1")}
    for branch in ("a", "a.retry1"):
        assert graph[f"filter/{branch}"].inputs.get("flagged") == (("domains/a",) if decision == "drop" else None)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["http", "https", "HTTP", " http"]),
            st.sampled_from(
                ["a.example", "b.a.example", "c.co.uk", "10.0.0.1", "u@a.example", "x.blogspot.com", "[::1]"]
            ),
            st.sampled_from(["", ":8080", "/", "/x.jpg", ":81/x?y=http://b.example/", "?q", "#f", "\\@b.example/"]),
        ).map(lambda parts: f"{parts[0]}://{parts[1]}{parts[2]}"),
        max_size=8,
    )
)
def test_a_site_that_is_known_has_the_domain_of_its_url(urls: list[str]) -> None:
    samples = [Sample(f"{row:032x}", "s", str(row), "train", "image", url) for row, url in enumerate(urls)]
    table = domain_table(samples, [Result(row, "dns_failed") for row in range(len(urls))], [""] * len(urls))
    expected = Counter(map(registered_domain, urls))
    assert dict(zip(table["domain"].to_pylist(), table["rows"].to_pylist(), strict=True)) == expected


def test_counts_in_parts_give_the_bytes_of_counting_at_once_in_any_order(tmp_path: Path) -> None:
    chosen, downloads = random.Random(5), {}
    for number in range(11):
        folder = tmp_path / "downloads" / str(number)
        folder.mkdir(parents=True)
        rows = []
        for host in sorted(chosen.sample(range(40), 17)):
            match, bodies = chosen.randrange(60), sorted(chosen.sample("abcdefgh", chosen.randrange(4)))
            counts = {"rows": 70, "fetched": match + 8, "match": match if host != 7 else 0, "mismatch": 9}
            repeated = [{"sha256": body, "num_urls": chosen.randrange(2, 20)} for body in bodies]
            rows.append({"domain": f"h\u00f6st{host}.invalid", **counts, "repeated": repeated})
        write_table(pa.Table.from_pylist(rows if number else [], schema=PART_SCHEMA), folder / "domains.parquet")
        downloads[str(number)] = folder
    inputs = {"downloads": (artifact_input("download/a", downloads),)}
    (part,) = DOMAINS.plan_parts(DomainsConfig(), inputs)
    whole = run_stage_part(DOMAINS, DomainsConfig(), part, tmp_path / "whole")
    assert whole.summary["num_flagged"] == 1
    assert whole.summary["num_repeated"] > 10
    for size in (1, 4, 64):
        config, folders = DomainCountsConfig(inputs_per_part=size), {}
        for one in reversed(DOMAIN_COUNTS.plan_parts(config, inputs)):
            folders[one.name] = tmp_path / f"counts{size}" / one.name
            run_stage_part(DOMAIN_COUNTS, config, one, folders[one.name])
        assert len(folders) == -(-11 // size)
        (part,) = DOMAINS.plan_parts(DomainsConfig(), {"downloads": (artifact_input("domain_counts/a", folders),)})
        assert run_stage_part(DOMAINS, DomainsConfig(), part, tmp_path / f"of{size}") == whole
        assert folder_bytes(tmp_path / f"of{size}") == folder_bytes(tmp_path / "whole")
