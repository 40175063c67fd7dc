"""The Kubernetes files: by their schemas, and by what a cluster of ours must have and must not be."""

import copy
import json
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest

from pipelines.flow.run.cluster import parse_machines
from tests.support.infra import (
    INFRA,
    SCHEMAS,
    cluster_problems,
    documents,
    image_problems,
    kuberay_problems,
    machines_of,
    pod_problems,
)

CORE = INFRA / "kuberay" / "namespace.yaml"
KUBERNETES = "1.33"  # the version whose schemas count


def load(name: str) -> Any:
    (document,) = documents(INFRA / "kuberay" / f"{name}.yaml")
    return document


def cluster_of(document: Any) -> Any:
    return document["spec"] if document["kind"] == "RayCluster" else document["spec"]["rayClusterSpec"]


needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason=f"KubeRay's schemas are not here ({SCHEMAS})")


@needs_schemas
@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_accepts_the_file(name: str) -> None:
    assert kuberay_problems(load(name)) == []


@needs_schemas
@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda job: job["spec"].update(backofLimit=3), "backofLimit"),
        (lambda job: cluster_of(job)["workerGroupSpecs"][0].update(minReplicas="x"), "is not of type 'integer'"),
        (lambda job: cluster_of(job)["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda job: cluster_of(job)["headGroupSpec"].pop("template"), "'template' is a required property"),
    ],
)
def test_the_schema_catches_a_slip(break_it: Callable[[Any], object], words: str) -> None:
    job = load("rayjob")
    break_it(job)
    assert words in "\n".join(kuberay_problems(job))


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_a_cluster_has_what_it_must_have(name: str) -> None:
    assert cluster_problems(cluster_of(load(name))) == []


def _pod(spec: Any, group: int) -> Any:
    return spec["workerGroupSpecs"][group]["template"]["spec"]


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda spec: spec.pop("authOptions") and spec.update(authOptions={}), "no token"),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].pop("num-cpus"), "head: takes tasks"),
        (lambda spec: spec["headGroupSpec"].update(serviceType="LoadBalancer"), "reachable from outside"),
        (lambda spec: _pod(spec, 1)["securityContext"].update(runAsUser=0), "gpu: may run as root"),
        (lambda spec: _pod(spec, 0)["containers"][0].update(image="x2vlm:latest"), "x2vlm:latest: not an exact"),
        (lambda spec: _pod(spec, 0)["containers"][0].update(image="registry.example.com/x2vlm"), "not an exact"),
        (lambda spec: _pod(spec, 1).pop("tolerations"), "does not tolerate"),
        (lambda spec: _pod(spec, 1)["volumes"][0].update(emptyDir={}), "gpu: /dev/shm has less"),
        (lambda spec: _pod(spec, 0)["volumes"][0]["emptyDir"].update(sizeLimit="1Gi"), "cpu-spot: /dev/shm has less"),
        (lambda spec: _pod(spec, 0)["containers"][0]["resources"].pop("limits"), "KeyError"),
    ],
)
def test_what_a_cluster_must_not_be_is_found(break_it: Callable[[Any], object], words: str) -> None:
    spec = copy.deepcopy(load("raycluster")["spec"])
    break_it(spec)
    try:
        found = "\n".join(cluster_problems(spec))
    except KeyError as error:
        found = repr(error)
    assert words in found


def test_job_and_cluster_describe_the_same_machines() -> None:
    assert cluster_of(load("rayjob")) == cluster_of(load("raycluster"))


def test_what_the_job_is_told_about_the_groups_is_what_they_are() -> None:
    spec = load("raycluster")["spec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (told,) = [variable["value"] for variable in head["env"] if variable["name"] == "X2VLM_MACHINES"]
    assert json.loads(told) == machines_of(spec)
    assert sum(count * machine.resources.get("GPU", 0) for machine, count in parse_machines(told)) == 8


def test_a_job_ends_in_every_case() -> None:
    spec = load("rayjob")["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["submissionMode"] == "K8sJobMode"
    assert all(spec[name] > 0 for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds", "backoffLimit"))
    assert pod_problems("submitter", spec["submitterPodTemplate"]["spec"]) == []
    assert image_problems(spec) == []


@pytest.mark.parametrize("number", range(len(documents(CORE))))
def test_kubernetes_accepts_the_core_objects(number: int) -> None:
    document = documents(CORE)[number]
    kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert image_problems(document) == []
    if document["kind"] == "Deployment":
        assert pod_problems("redis", document["spec"]["template"]["spec"]) == []


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("Namespace", "metadata", "x2vlm"), ("Service", "spec", {"portz": []}), ("Deployment", "spec", {"replicas": "1"})],
)
def test_the_validator_catches_a_slip(kind: str, field: str, value: Any) -> None:
    (document,) = [document for document in documents(CORE) if document["kind"] == kind]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, field: value}, KUBERNETES, strict=True)


def test_names_in_the_walk_are_those_of_the_files() -> None:
    """docs/cluster.md and the files agree on namespace, secrets, services, the archive and the operator's version."""
    page = (INFRA.parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    cluster, job = load("raycluster"), load("rayjob")
    spec, space = cluster["spec"], cluster["metadata"]["namespace"]
    secret = spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    token = spec["authOptions"]["secretName"]
    archive = job["spec"]["runtimeEnvYAML"].split('"')[1]
    for words in (
        f"kubectl create secret generic {token} --namespace {space} --from-literal=auth_token=",
        f"kubectl create secret generic {secret['name']} --namespace {space} --from-literal={secret['key']}=",
        f"kubectl wait --namespace {space} --for=condition=HeadPodReady raycluster/{cluster['metadata']['name']} ",
        f"kubectl port-forward --namespace {space} service/{cluster['metadata']['name']}-head-svc 8265:8265",
        f"--output={archive.rpartition('/')[2]} HEAD",
        f"aws s3 cp {archive.rpartition('/')[2]} {archive}",
        f"Ray {spec['rayVersion']}",
    ):
        assert words in page, words
    lock = (INFRA.parent / "requirements.lock").read_text(encoding="utf-8")
    assert f"\nray=={spec['rayVersion']} " in lock
    (redis,) = [document for document in documents(CORE) if document["kind"] == "Service"]
    host, _, port = spec["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
    assert host == f"{redis['metadata']['name']}.{space}.svc.cluster.local"
    assert int(port) == redis["spec"]["ports"][0]["port"]
