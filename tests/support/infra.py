"""What is wrong with a deployment file: schemas, and what no schema asks for (pinned images, no root, an idle head)."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"
SCHEMAS = INFRA.parents[1] / "shared" / "schemas" / "kuberay"
# An exact version, not "latest", "3" or "3.11": at least two numbers after a dot, or a digest.
EXACT = re.compile(
    r"^[^\s:@]+(:\d+)?(/[^\s:@]+)*:v?(\d+\.\d+(\.\d+)?[\w.-]*)(@sha256:[0-9a-f]{64})?$|@sha256:[0-9a-f]{64}$"
)
GIB = {"Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def documents(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def walk(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping inside `value`, itself included."""
    if isinstance(value, Mapping):
        yield value
        for item in value.values():
            yield from walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from walk(item)


def image_problems(value: Any) -> list[str]:
    """Images that are not named by an exact version."""
    images = [found["image"] for found in walk(value) if isinstance(found.get("image"), str)]
    return [f"image {image}: not an exact version" for image in images if not EXACT.search(image)]


def strict(schema: Any) -> Any:
    """A schema of a Kubernetes resource for a JSON Schema validator: unknown fields are errors."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def kuberay_problems(document: Any) -> list[str]:
    """What KubeRay's own schema says against a RayCluster or RayJob."""
    schema = json.loads((SCHEMAS / f"{document['kind'].lower()}s_v1.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft7Validator(strict(schema.get("openAPIV3Schema", schema)))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def pod_problems(name: str, pod: Mapping[str, Any]) -> list[str]:
    """What a pod of ours must not be: root, unlimited, privileged, with the 64 MiB of shared memory of a container."""
    problems = []
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        problems.append(f"{name}: may run as root")
    for container in pod["containers"]:
        where = f"{name}, container {container['name']}"
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
            problems.append(f"{where}: may gain privileges")
        limits = container.get("resources", {}).get("limits", {})
        if not {"cpu", "memory"} <= limits.keys():
            problems.append(f"{where}: no limits of cpu and memory")
    return problems


def cluster_problems(spec: Mapping[str, Any]) -> list[str]:
    """What a RayCluster of ours must have besides what the schema asks for."""
    problems = []
    if spec.get("authOptions", {}).get("mode") != "token" or not spec["authOptions"].get("secretName"):
        problems.append("no token: whoever reaches the dashboard runs code")
    if "redisAddress" not in spec.get("gcsFaultToleranceOptions", {}):
        problems.append("the death of the head ends the cluster")
    head = spec["headGroupSpec"]
    if str(head.get("rayStartParams", {}).get("num-cpus")) != "0":
        problems.append("head: takes tasks")
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        problems.append("head: reachable from outside")
    groups = {"head": head} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for name, group in groups.items():
        pod = group["template"]["spec"]
        problems += pod_problems(name, pod) + _memory_problems(name, pod)
        limits = pod["containers"][0]["resources"]["limits"]
        keys = {toleration.get("key") for toleration in pod.get("tolerations", [])}
        if "nvidia.com/gpu" in limits and "nvidia.com/gpu" not in keys:
            problems.append(f"{name}: asks for GPUs and does not tolerate their machines' taint")
    return problems + image_problems(spec)


def _memory_problems(name: str, pod: Mapping[str, Any]) -> list[str]:
    memory = size_of(pod["containers"][0]["resources"]["limits"]["memory"])
    mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == "/dev/shm"}
    shm = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] in mounted]
    if not shm or shm[0].get("medium") != "Memory" or size_of(shm[0]["sizeLimit"]) < 0.3 * memory:
        return [f"{name}: /dev/shm has less than 30 % of the memory"]
    return []


def size_of(text: str) -> int:
    """Bytes of "16Gi"."""
    return int(text[:-2]) * GIB[text[-2:]]


def machines_of(spec: Mapping[str, Any]) -> list[dict[str, float]]:
    """What X2VLM_MACHINES has to say about the worker groups of a RayCluster."""
    found = []
    for group in spec["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        machine = {"CPU": int(limits["cpu"]), "memory": size_of(limits["memory"]), "count": group["maxReplicas"]}
        found.append(machine | ({"GPU": int(limits["nvidia.com/gpu"])} if "nvidia.com/gpu" in limits else {}))
    return found
