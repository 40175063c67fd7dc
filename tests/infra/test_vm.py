"""The files of Ray's VM launcher, by the schema inside Ray's wheel and by what our clusters must have."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray

from pipelines.flow.run.cluster import launcher_machines
from tests.support.infra import EXACT, INFRA, documents

SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text(encoding="utf-8"))
CLOUDS = ["aws", "gcp"]


def load(cloud: str) -> Any:
    (config,) = documents(INFRA / "vm" / f"{cloud}.yaml")
    return config


def problems(config: Any) -> list[str]:
    found = [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(config)]
    kinds = config["available_node_types"]
    head = kinds[config["head_node_type"]]
    if head["resources"].get("CPU") != 0:
        found.append("the head takes tasks")
    if not EXACT.search(config["docker"]["image"]):
        found.append(f"image {config['docker']['image']}: not an exact version")
    words = " ".join([*config["docker"]["run_options"], *config["head_start_ray_commands"]])
    if "RAY_AUTH_MODE=token" not in words or "0.0.0.0" in words:
        found.append("open to whoever reaches it")
    if sum(kind.get("max_workers", 0) for kind in kinds.values()) > config["max_workers"]:
        found.append("max_workers is less than the machines of all kinds")
    for name, kind in kinds.items():
        options = " ".join(kind.get("docker", {}).get("worker_run_options", []))
        if kind["resources"].get("GPU") and ("--gpus=all" not in options or "--shm-size" not in options):
            found.append(f"{name}: its container has no GPU or no shared memory")
        if _is_spot(kind) and kind["resources"].get("GPU"):
            found.append(f"{name}: a training on machines that are taken away")
        if _disk(kind) < (200 if name == config["head_node_type"] else 500):
            found.append(f"{name}: the disk is full after two images")
    return found


def _is_spot(kind: Any) -> bool:
    node = kind["node_config"]
    return "InstanceMarketOptions" in node or node.get("scheduling", {}).get("provisioningModel") == "SPOT"


def _disk(kind: Any) -> int:
    node = kind["node_config"]
    if "BlockDeviceMappings" in node:
        return int(node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"])
    return int(node["disks"][0]["initializeParams"]["diskSizeGb"])


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_launcher_accepts_the_file(cloud: str) -> None:
    assert problems(load(cloud)) == []


@pytest.mark.parametrize("cloud", CLOUDS)
@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda config: config.pop("provider"), "'provider' is a required property"),
        (lambda config: config.update(idle_timeout=5), "idle_timeout"),
        (lambda config: config["available_node_types"]["head"]["resources"].update(CPU=4), "the head takes tasks"),
        (lambda config: config["docker"].update(image="x2vlm:latest"), "not an exact version"),
        (lambda config: config["docker"].update(run_options=[]), "open to whoever"),
        (lambda config: config["available_node_types"]["gpu"].pop("docker"), "no GPU or no shared memory"),
        (lambda config: config["available_node_types"]["gpu"].update(max_workers=9), "max_workers is less"),
    ],
)
def test_a_slip_is_found(cloud: str, break_it: Callable[[Any], object], words: str) -> None:
    config = copy.deepcopy(load(cloud))
    break_it(config)
    assert words in "\n".join(problems(config))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_only_filter_machines_may_be_taken_away(cloud: str) -> None:
    kinds = load(cloud)["available_node_types"]
    assert {name for name, kind in kinds.items() if _is_spot(kind)} == {"cpu_spot"}


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_driver_learns_what_the_autoscaler_may_add(cloud: str) -> None:
    found = launcher_machines(load(cloud))
    assert [(machine.resources, count) for machine, count in found] == [
        ({"CPU": 16.0}, 16),
        ({"CPU": 96.0, "GPU": 8.0}, 1),
    ]
