"""What a finished command says: of rounds of retries, and of the nodes that it was not about."""

import pytest

from pipelines.driver.answers import retry_lines
from pipelines.experiment import load_experiment
from pipelines.flow.store.artifact import CountRecord, InputRecord, Manifest
from pipelines.report.page import render_report


def rounds(experiment_rounds: int, **rows: tuple[int, int]) -> dict[str, Manifest]:
    """The last rounds of downloads, by source: rows tried again, and rows that came."""
    found = {}
    for source, (num_in, num_out) in rows.items():
        dropped = {"dns_failed": num_in - num_out} if num_in > num_out else {}
        counts = {"rows": CountRecord(num_in=num_in, num_out=num_out, dropped=dropped)} if num_in else {}
        found[f"download/{source}.retry{experiment_rounds}"] = Manifest.model_construct(counts=counts)
        found[f"download/{source}"] = Manifest.model_construct(counts={"rows": CountRecord(num_in=9, num_out=9)})
    return found


@pytest.mark.parametrize("earlier", [0, 1, 2])
def test_sources_with_and_without_something_to_retry(earlier: int) -> None:
    kept = (("timeout",),) * earlier
    experiment = load_experiment("sample").model_copy(update={"retries": (*kept, ("5xx", "dns"))})
    lines = retry_lines(rounds(earlier + 1, coco=(0, 0), laion=(3, 1), cc3m=(0, 0)), experiment, [("5xx", "dns")])
    assert lines[0] == f"retry    laion.retry{earlier + 1}: 3 rows tried again, 1 came"
    assert lines[1] == "retry    nothing to retry in coco, cc3m: no row there failed by 5xx, dns"
    assert lines[2].startswith("retries  to build on what was retried, write `retries: [")
    assert lines[2].count('"timeout"') == earlier


@pytest.mark.parametrize("sources", [["coco"], ["coco", "laion"], ["a", "b", "c"]])
def test_nothing_to_retry_anywhere_is_all_that_is_said(sources: list[str]) -> None:
    experiment = load_experiment("sample").model_copy(update={"retries": (("dns",),)})
    lines = retry_lines(rounds(1, **dict.fromkeys(sources, (0, 0))), experiment, [("dns",)])
    assert lines == [f"retry    nothing to retry in {', '.join(sources)}: no row there failed by dns"]


def node(key: str, root: str, *reads: tuple[str, str]) -> Manifest:
    inputs = [InputRecord(slot="rows", node=name, root=of) for name, of in reads]
    stage = key.split("/")[0]
    return Manifest.model_construct(
        stage=stage, node=key, root=root, inputs=inputs, counts={}, parts=[], summary={}, provenance={}
    )


@pytest.mark.parametrize(
    ("filtered", "old"), [("f1", []), ("f2", ["score/a"])], ids=["up to date", "filtered again since"]
)
def test_the_report_says_what_is_due(filtered: str, old: list[str]) -> None:
    manifests = {
        "read/a": node("read/a", "r1"),
        "filter/a": node("filter/a", filtered, ("read/a", "r1")),
        "score/a": node("score/a", "s1", ("filter/a", "f1")),
    }
    page = render_report("x", manifests, [], [])
    assert ("and due" in page) == bool(old)
    assert [key for key in manifests if f"<code>{key}</code>" in page] == old
