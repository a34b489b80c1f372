"""The manifests obey KubeRay's own schema and its operator's rules, hold no secret, and agree with each other and with cluster.yaml."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "ray_jobs" / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"  # of KubeRay 1.7.0, made strict; no part of the project
CLUSTER, JOB = "raycluster", "rayjob"
Manifest = dict[str, Any]


def load(name: str) -> Manifest:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text("utf-8"))


def spec_of(manifest: Manifest) -> Manifest:
    """Return the cluster's part of either manifest."""
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def pods(manifest: Manifest) -> list[Manifest]:
    spec = spec_of(manifest)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def faults_by_schema(manifest: Manifest) -> list[str]:
    if not SCHEMAS.exists():
        pytest.skip("needs ../shared/data/kuberay, which is not part of the project")
    schema = json.loads((SCHEMAS / f"{manifest['kind'].lower()}s.json").read_text("utf-8"))
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


def faults_by_operator(manifest: Manifest) -> list[str]:
    """Return what KubeRay's operator refuses beyond the schema (its validation.go), as far as our manifests touch it."""
    spec, job = spec_of(manifest), manifest["spec"]
    faults = []
    if spec.get("authOptions", {}).get("mode") == "token" and not spec.get("rayVersion"):
        faults.append("token mode needs rayVersion")
    if spec.get("autoscalerOptions", {}).get("version") == "v2" and any(
        pod.get("restartPolicy", "Never") != "Never" for pod in pods(manifest)
    ):
        faults.append("autoscaler v2 needs restartPolicy Never")
    if manifest["kind"] == "RayJob":
        if job.get("submissionMode", "K8sJobMode") not in ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"):
            faults.append("no such submissionMode")
        if job.get("ttlSecondsAfterFinished") and not job.get("shutdownAfterJobFinishes"):
            faults.append("ttlSecondsAfterFinished needs shutdownAfterJobFinishes")
        if job.get("clusterSelector") and job.get("backoffLimit"):
            faults.append("backoffLimit is not for a selected cluster")
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    if len(set(names)) < len(names) or any(len(name) > 40 for name in [manifest["metadata"]["name"], *names]):
        faults.append("names are unique and short")
    return faults


@pytest.mark.parametrize("name", [CLUSTER, JOB])
def test_a_manifest_is_one_that_kuberay_accepts(name: str) -> None:
    assert faults_by_operator(load(name)) == []
    assert faults_by_schema(load(name)) == []


def at(*path: str | int, set: Any = None, drop: bool = False) -> Callable[[Manifest], None]:  # noqa: A002
    """Return a change of a manifest at a path."""

    def change(manifest: Manifest) -> None:
        node: Any = manifest
        for key in path[:-1]:
            node = node[key]
        if drop:
            del node[path[-1]]
        else:
            node[path[-1]] = set

    return change


CLUSTER_SPEC = ("spec", "rayClusterSpec")
WORKER = (*CLUSTER_SPEC, "workerGroupSpecs", 0)
CONTAINER = (*WORKER, "template", "spec", "containers", 0)
PLANTED = {
    "misspelt field": at(*CLUSTER_SPEC, "enableAutoscaling", set=True),
    "misspelt deadline": at("spec", "activeDeadlineSecond", set=3),
    "text for a number": at("spec", "backoffLimit", set="3"),
    "number for a text": at(*CLUSTER_SPEC, "headGroupSpec", "rayStartParams", "num-cpus", set=2),
    "autoscaler v3": at(*CLUSTER_SPEC, "autoscalerOptions", "version", set="v3"),
    "missing bound": at(*WORKER, "maxReplicas", drop=True),
    "list for a mapping": at(*CONTAINER, "resources", set=[]),
    "volume without a name": at(*WORKER, "template", "spec", "volumes", 0, "name", drop=True),
    "unknown way of submitting": at("spec", "submissionMode", set="K8SJob"),
    "time to live without an end": at("spec", "shutdownAfterJobFinishes", set=False),
    "token for an unknown version": at(*CLUSTER_SPEC, "rayVersion", drop=True),
    "restarted worker under v2": at(*WORKER, "template", "spec", "restartPolicy", set="Always"),
    "two groups of one name": at(*WORKER, "groupName", set="gpu-worker"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(fault: str) -> None:
    manifest = copy.deepcopy(load(JOB))
    PLANTED[fault](manifest)
    assert faults_by_operator(manifest) + faults_by_schema(manifest), fault


def test_the_job_has_the_cluster() -> None:
    assert spec_of(load(JOB)) == spec_of(load(CLUSTER))


@pytest.mark.parametrize("name", [CLUSTER, JOB])
def test_every_pod_has_an_identity_limits_and_the_keepalive(name: str) -> None:
    manifest = load(name)
    account = yaml.safe_load((FOLDER / "service-account.yaml").read_text("utf-8"))["metadata"]["name"]
    spec = spec_of(manifest)
    assert spec["authOptions"] == {"mode": "token"} and spec["autoscalerOptions"]["version"] == "v2"
    for pod in pods(manifest):
        assert pod["serviceAccountName"] == account
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])
        (container,) = pod["containers"]
        assert "/tmp/ray" in {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {one["name"] for one in container["env"]} >= {
            "RAY_grpc_client_keepalive_time_ms",
            "RAY_grpc_client_keepalive_timeout_ms",
        }
        assert "cpu" not in container["resources"]["limits"] and container["resources"]["limits"]["memory"]
    for pod in pods(manifest)[1:]:
        drains = next(int(one["value"]) for one in pod["containers"][0]["env"] if one["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")
        assert drains < pod["terminationGracePeriodSeconds"] <= 110, "within the notice of a spot machine"
        assert "/dev/shm" in {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}


def test_the_job_ends_and_takes_its_cluster_with_it() -> None:
    spec = load(JOB)["spec"]
    assert spec["activeDeadlineSeconds"] > spec["preRunningDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] and spec["ttlSecondsAfterFinished"] > 0
    assert "working_dir: /home/ray/app" in spec["runtimeEnvYAML"]
    assert "WORKDIR /home/ray/app" in (ROOT / "docker" / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("name", [CLUSTER, JOB])
def test_versions_and_sizes_are_those_of_cluster_yaml(name: str) -> None:
    spec, written = spec_of(load(name)), yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    assert spec["rayVersion"] == pins["ray"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for group, kind in (("cpu-worker", "cpu_worker"), ("gpu-worker", "gpu_worker"), ("gpu-on-demand", "gpu_worker")):
        resources = groups[group]["template"]["spec"]["containers"][0]["resources"]
        memory = {"cpu-worker": 64, "gpu-worker": 384, "gpu-on-demand": 384}[group]  # GiB of the machine
        planned = written["available_node_types"][kind]
        assert groups[group]["maxReplicas"] == planned["max_workers"] and groups[group]["minReplicas"] == 0
        assert int(groups[group]["rayStartParams"]["num-cpus"]) == planned["resources"]["CPU"]
        cores, gib = int(resources["requests"]["cpu"]), int(resources["requests"]["memory"].removesuffix("Gi"))
        shares = (cores / planned["resources"]["CPU"], gib / memory)
        assert all(0.85 <= share <= 0.92 for share in shares), "a pod that asks for a whole machine fits on none"
        assert int(resources["requests"].get("nvidia.com/gpu", 0)) == planned["resources"]["GPU"]
    assert groups["gpu-worker"]["priority"] > groups["gpu-on-demand"]["priority"]


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9]{20,}|(?i:(secret|password|token)[a-z_]*: *[\"']?[A-Za-z0-9+/]{16,})"
)


@pytest.mark.parametrize(
    "path", sorted([*FOLDER.glob("*.yaml"), ROOT / "cluster.yaml", *(ROOT / "cluster").glob("*.yaml")]), ids=lambda path: path.name
)
def test_no_secret_is_written_down(path: Path) -> None:
    assert not SECRET.search(path.read_text("utf-8"))
    assert SECRET.search("auth_token: 0123456789abcdef0123456789abcdef"), "the search finds one"
