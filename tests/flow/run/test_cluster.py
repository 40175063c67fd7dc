"""Whether parts and training workers fit on a cluster, and what an autoscaler may still add."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.flow.run.cluster import (
    Cluster,
    Machine,
    check_room,
    gpus_of,
    launcher_machines,
    parse_machines,
    shortage_of_workers,
)
from pipelines.flow.stage import Node, Runtime, Workers
from pipelines.flow.store.seen_by_all import SharedFolder
from tests.support.flow import toy
from x2vlm.errors import ConfigError, NotEnoughRoom

SCORER = replace(toy.FILTER, gpu_share=lambda config: 0.5)


def machines(*sizes: tuple[float, float]) -> tuple[Machine, ...]:
    """Machines of (CPUs, GPUs), each on its own host."""
    return tuple(Machine({"CPU": cpus, "GPU": gpus}, f"host{n}") for n, (cpus, gpus) in enumerate(sizes))


def node(runtime: Runtime | None = None, workers: Workers | None = None, scores: bool = False) -> Node:
    stage = SCORER if scores else toy.FILTER
    return Node("filter/a", stage, toy.FilterConfig(), {"rows": ()}, runtime or Runtime(), workers)


@pytest.mark.parametrize(
    ("num_gpus", "sizes", "expected"),
    [
        (None, [(4, 0)], 0.0),
        (None, [(4, 0), (4, 1)], 0.5),
        (0, [(4, 8)], 0.0),
        (1, [(4, 0)], 1.0),  # asked for: whoever has none is told
    ],
)
def test_gpus_are_asked_for_where_there_are_some(
    num_gpus: float | None, sizes: Sequence[tuple[float, float]], expected: float
) -> None:
    runtime = Runtime(num_gpus=num_gpus)
    assert gpus_of(node(runtime, scores=True), Cluster(machines(*sizes))) == expected
    assert gpus_of(node(Runtime()), Cluster(machines(*sizes))) == 0.0  # the stage uses none


def test_a_gpu_that_the_autoscaler_may_add_is_asked_for() -> None:
    cluster = Cluster(machines((4, 0)), addable=machines((96, 8)), autoscales=True)
    assert gpus_of(node(scores=True), cluster) == 0.5


@pytest.mark.parametrize(
    ("workers", "demand", "sizes", "words"),
    [
        # The kind of the field case: some GPUs, but fewer than workers.
        (Workers(2, 2), (1, 1), [(2, 1)], "2 workers at a time, each with 1 CPU and 1 GPU, but .* 1 GPU: room for 1"),
        (Workers(8, 8), (1, 1), [(96, 7), (96, 0)], "8 workers .* 192 CPU and 7 GPU: room for 7"),
        (Workers(8, 8), (1, 1), [(96, 0)], "0 GPU: room for 0"),
        (Workers(4, 8), (1, 1), [(96, 3)], "4 workers"),
        # CPUs: of one machine, and of several that each have too few for two workers.
        (Workers(2, 2), (1, 0), [(1, 0)], "2 workers at a time, each with 1 CPU, but .* room for 1"),
        (Workers(4, 4), (3, 0), [(4, 0), (4, 0), (5, 0)], "13 CPU and 0 GPU: room for 3"),
        # Eight GPUs are there, and not where they are asked for.
        (Workers(8, 8, placement="STRICT_PACK"), (1, 1), [(96, 4), (96, 4)], "STRICT_PACK.* room for 4"),
        (Workers(3, 3, placement="STRICT_SPREAD"), (1, 1), [(96, 8), (96, 8)], "STRICT_SPREAD.* room for 2"),
    ],
)
def test_workers_without_room_are_refused_in_numbers(
    workers: Workers, demand: tuple[float, float], sizes: Sequence[tuple[float, float]], words: str
) -> None:
    asked = replace(workers, num_cpus=demand[0])
    with pytest.raises(NotEnoughRoom, match=words):
        check_room([node(Runtime(num_gpus=demand[1]), asked)], Cluster(machines(*sizes)))


@pytest.mark.parametrize(
    ("workers", "demand", "sizes"),
    [
        (Workers(2, 2), (1, 1), [(2, 2)]),
        (Workers(4, 8), (1, 1), [(96, 5)]),
        (Workers(8, 8), (1, 1), [(96, 4), (96, 4)]),
        (Workers(2, 2), (1, 0), [(2, 8)]),
        (Workers(3, 3), (0.1, 0), [(0.3, 0)]),  # 0.3 / 0.1 is 2.9999999999999996
    ],
)
def test_workers_with_room_are_not(
    workers: Workers, demand: tuple[float, float], sizes: Sequence[tuple[float, float]]
) -> None:
    check_room([node(Runtime(num_gpus=demand[1]), replace(workers, num_cpus=demand[0]))], Cluster(machines(*sizes)))


def test_a_cluster_with_gpus_does_not_train_on_cpus_unasked() -> None:
    trained = replace(node(workers=Workers(2, 2)), stage=replace(toy.FILTER, gpu_share=lambda config: 1.0))
    check_room([trained], Cluster(machines((4, 0))))
    with pytest.raises(NotEnoughRoom, match=r"1 GPU: room for 1.*runtime: \{pretrain: \{num_gpus: 0\}\}"):
        check_room([trained], Cluster(machines((4, 1))))
    check_room([replace(trained, runtime=Runtime(num_gpus=0))], Cluster(machines((4, 1))))


def test_on_a_laptop_the_remedy_is_the_number_of_cpus() -> None:
    cluster = Cluster(machines((1, 0)), is_local=True)
    with pytest.raises(NotEnoughRoom, match=r"this machine's Ray has 1 CPU and 0 GPU: room for 1. Give --num-cpus 2"):
        check_room([node(workers=Workers(2, 2))], cluster)


@pytest.mark.parametrize(
    ("runtime", "sizes", "words"),
    [
        (Runtime(num_cpus=8), [(4, 0), (4, 0)], "8 CPU on one machine, but .* 8 CPU .*the most on one machine is 4"),
        (Runtime(num_gpus=2), [(4, 1), (4, 1)], "2 GPU on one machine.*the most on one machine is 1 GPU"),
        (Runtime(num_cpus=8, num_gpus=1), [(96, 0), (4, 8)], "8 CPU and 1 GPU on one machine.*none has both"),
        (Runtime(memory_bytes=10**12), [(4, 0)], "bytes of memory on one machine"),
    ],
)
def test_a_part_must_fit_on_one_machine(runtime: Runtime, sizes: Sequence[tuple[float, float]], words: str) -> None:
    with pytest.raises(NotEnoughRoom, match=words):
        check_room([node(runtime)], Cluster(machines(*sizes)))


def test_all_shortages_are_told_at_once() -> None:
    nodes = [node(Runtime(num_cpus=9)), node(Runtime(num_gpus=1), Workers(2, 2)), node(Runtime(num_cpus=1))]
    with pytest.raises(NotEnoughRoom) as caught:
        check_room(nodes, Cluster(machines((4, 1))))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("addable", [(), ((96, 8),), ((12, 1),) * 8])
def test_where_machines_are_added_the_run_waits_and_says_so(
    addable: tuple[tuple[float, float], ...], caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(machines((0, 0)), machines(*addable), autoscales=True)
    with caplog.at_level(logging.WARNING):
        check_room([node(Runtime(num_gpus=1), Workers(8, 8)), node(Runtime(num_cpus=4))], cluster)
    assert caplog.text.count("event=waiting_for_machines") == 2
    assert "8 workers at a time" in caplog.text
    assert "0 GPU" in caplog.text


@pytest.mark.parametrize(
    ("addable", "words"),
    [
        (((96, 4),), "room for 0, for 4 once the autoscaler"),
        (((96, 0),), "room for 0[.]"),
        (((0.5, 8),), "room for 0[.]"),
    ],
)
def test_where_too_few_may_be_added_it_is_refused(addable: tuple[tuple[float, float], ...], words: str) -> None:
    cluster = Cluster(machines((0, 0)), machines(*addable), autoscales=True)
    with pytest.raises(NotEnoughRoom, match=words):
        check_room([node(Runtime(num_gpus=1), Workers(8, 8))], cluster)


def test_parts_in_the_driver_need_no_room() -> None:
    check_room([replace(node(Runtime(num_cpus=99)), stage=replace(toy.FILTER, on_driver=True))], Cluster(machines()))


def test_nobody_is_short_of_nothing() -> None:
    assert (
        shortage_of_workers("pretrain", Workers(2, 2, num_cpus=0.5), {"CPU": 0.5, "GPU": 0}, Cluster(machines((1, 0))))
        is None
    )


def test_machines_are_read_from_the_variable() -> None:
    found = parse_machines('[{"CPU": 14, "count": 3}, {"CPU": 90, "GPU": 8, "memory": 5, "count": 1}]')
    assert [(machine.resources, count) for machine, count in found] == [
        ({"CPU": 14.0}, 3),
        ({"CPU": 90.0, "GPU": 8.0, "memory": 5.0}, 1),
    ]
    for text in ("", "8", '[{"CPU": 1}]', '[{"CPU": "many", "count": 1}]', '{"CPU": 1, "count": 1}'):
        with pytest.raises(ConfigError, match="X2VLM_MACHINES"):
            parse_machines(text)


def test_the_head_is_no_machine_that_is_added() -> None:
    kinds = {
        "head": {"resources": {"CPU": 0}},
        "cpu": {"resources": {"CPU": 16}, "max_workers": 3},
        "gpu": {"resources": {"CPU": 96, "GPU": 8}},
        "unknown": {"node_config": {}},
    }
    found = launcher_machines({"max_workers": 5, "head_node_type": "head", "available_node_types": kinds})
    assert [(machine.resources["CPU"], count) for machine, count in found] == [(16.0, 3), (96.0, 5)]


def test_a_folder_of_another_machine_is_told_from_a_shared_one(tmp_path: Path) -> None:
    """Another machine has no folder of that name, an empty one, or a store of its own."""
    shared = SharedFolder.mark(tmp_path / "store")
    shared.check()
    (tmp_path / "empty").mkdir()
    SharedFolder.mark(tmp_path / "other")
    for name in ("missing", "empty", "other"):
        elsewhere = replace(shared, root=str(tmp_path / name))
        with pytest.raises(
            ConfigError, match=f"store .*{name}: .* does not see the folder of {shared.hostname}.*s3://"
        ):
            elsewhere.check()
    shared.remove()
    assert list((tmp_path / "store").rglob(".seen-*")) == []
