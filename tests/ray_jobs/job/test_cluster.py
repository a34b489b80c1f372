"""cluster.yaml is valid for Ray, starts the right nodes for each stage, keeps the token on, and agrees with its documentation."""

from __future__ import annotations

import copy
import functools
import http.server
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
import zipfile
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import ray
import ray.autoscaler
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.resource_demand_scheduler import _resource_based_utilization_scorer, get_nodes_for
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.node_launch_exception import NodeLaunchException

ROOT = Path(__file__).resolve().parents[3]
KEEPALIVE = ("RAY_grpc_client_keepalive_time_ms=10000", "RAY_grpc_client_keepalive_timeout_ms=10000")
VARIANTS = ("cluster.yaml", "cluster/gcp.yaml", "cluster/ssh.yaml")
WORKERS = ("cpu_worker", "gpu_worker")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    return prepare_config(copy.deepcopy(written))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_one_that_ray_accepts(name: str) -> None:
    validate_config(prepare_config(yaml.safe_load((ROOT / name).read_text("utf-8"))))


def test_the_file_obeys_rays_schema(written: dict[str, Any], prepared: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text("utf-8"))
    jsonschema.validate(written, schema)
    validate_config(prepared)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"autoscaling_mode": "default"}, jsonschema.ValidationError),
        ({"head_node_type": "heads"}, ValueError),
        ({"available_node_types": {"head": {"resources": {}}}}, jsonschema.ValidationError),
    ],
)
def test_the_validation_refuses_what_is_wrong(written: dict[str, Any], change: dict[str, Any], error: type[Exception]) -> None:
    """So that the test above means something."""
    with pytest.raises(error):
        validate_config(prepare_config({**copy.deepcopy(written), **change}))


def test_workers_come_and_go_on_spot_and_the_head_stays(written: dict[str, Any]) -> None:
    types = written["available_node_types"]
    assert set(types) == {"head", *WORKERS} and written["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for worker in WORKERS:
        assert types[worker]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types[worker]["min_workers"] == 0 < types[worker]["max_workers"]
    assert sum(types[worker]["max_workers"] for worker in WORKERS) <= written["max_workers"]
    assert written["idle_timeout_minutes"] == 10
    assert all({"CPU", "GPU"} <= set(kind["resources"]) for kind in types.values()), "what AWS would have to be asked for"
    assert types["head"]["resources"]["driver"] == 1


def nodes_for(prepared: dict[str, Any], demands: list[Any]) -> tuple[dict[str, int], list[Any]]:
    """Return the workers that Ray's own scheduler would start beside the head, and the demands it finds no place for."""
    scorer: Any = functools.partial(_resource_based_utilization_scorer, node_availability_summary=cast(Any, None))
    return get_nodes_for(
        prepared["available_node_types"],
        {"head": 1},
        "head",
        prepared["max_workers"],
        demands,
        lambda node, bundles, _: scorer(node, bundles),
    )


def test_data_tasks_start_cpu_workers_and_training_starts_gpu_workers(prepared: dict[str, Any]) -> None:
    types = prepared["available_node_types"]
    assert nodes_for(prepared, [{"CPU": 1}] * 40) == ({"cpu_worker": 3}, [])
    per_node = types["gpu_worker"]["resources"]["GPU"]
    assert nodes_for(prepared, [{"GPU": 1, "CPU": 1}] * (2 * per_node)) == ({"gpu_worker": 2}, [])
    every_gpu = per_node * types["gpu_worker"]["max_workers"]
    started, waiting = nodes_for(prepared, [{"GPU": 1, "CPU": 1}] * (every_gpu + 1))
    assert started == {"gpu_worker": types["gpu_worker"]["max_workers"]} and len(waiting) == 1


def test_all_data_workers_fit_the_cpu_workers(prepared: dict[str, Any]) -> None:
    """One more would start a GPU node for it: the scheduler avoids that only while there is another place."""
    types = prepared["available_node_types"]
    data = types["cpu_worker"]["resources"]["CPU"] * types["cpu_worker"]["max_workers"]
    assert nodes_for(prepared, [{"CPU": 1}] * data) == ({"cpu_worker": types["cpu_worker"]["max_workers"]}, [])
    started, _ = nodes_for(prepared, [{"CPU": 1}] * (data + 1))
    assert started["gpu_worker"] == 1


def test_every_driver_of_a_full_cluster_fits_the_head(prepared: dict[str, Any]) -> None:
    """A driver holds 0.1 CPU and 0.01 `driver`, and there is at most one for each GPU."""
    types = prepared["available_node_types"]
    drivers = types["gpu_worker"]["resources"]["GPU"] * types["gpu_worker"]["max_workers"]
    head = types["head"]["resources"]
    assert 0.1 * drivers <= head["CPU"] and 0.01 * drivers <= head["driver"]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_node_asks_for_the_token_and_notices_vanished_ones(name: str) -> None:
    written = yaml.safe_load((ROOT / name).read_text("utf-8"))
    options = written["docker"]["run_options"]
    for variable in ("RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/home/ray/token/auth_token", *KEEPALIVE):
        assert f"--env {variable}" in options
    for role in ("head", "worker"):
        (start,) = [command for command in written[f"{role}_start_ray_commands"] if "ray start" in command]
        assert start.startswith("RAY_AUTH_MODE=token ")
    assert written["file_mounts"]["/home/ray/token"] == "~/.ray/token"
    assert "--dashboard-host=127.0.0.1" in written["head_start_ray_commands"][-1], "launchers tunnel to it"


def test_the_image_has_the_token_and_the_keepalive_too() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    assert all(variable in dockerfile for variable in ("RAY_AUTH_MODE=token", *KEEPALIVE))


def test_each_role_has_its_own_rights_and_the_group_is_ours(written: dict[str, Any]) -> None:
    kinds = written["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    assert profiles == {"head": "sft-diversity-head", **dict.fromkeys(WORKERS, "sft-diversity-worker")}
    assert written["provider"]["security_group"] == {"GroupName": "sft-diversity"}
    assert "," not in written["provider"]["availability_zone"], "ranks of a run stay in one zone"
    for kind in kinds.values():
        (disk,) = kind["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["DeleteOnTermination"] is True


def test_the_image_has_the_pinned_packages_and_nodes_install_nothing(written: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    base = re.search(rf"^FROM rayproject/ray:{re.escape(pins['ray'])}-(py3\d+-gpu) AS nodes$", dockerfile, re.MULTILINE)
    assert base is not None
    assert written["docker"]["image"].endswith(f":{pins['ray']}-{base.group(1)}")
    assert not written["setup_commands"] and not written["head_setup_commands"] and not written["worker_setup_commands"]
    assert "-c constraints.txt -r /tmp/packages.txt" in dockerfile
    printed = re.search(r'python -c "(.*?)"', dockerfile.replace("\\\n", ""), re.DOTALL)
    assert printed is not None
    assert printed_lines(printed.group(1)) >= set(project()["dependencies"] + project()["optional-dependencies"]["gpu"])


def test_the_image_for_a_rayjob_holds_all_code() -> None:
    stage = (ROOT / "docker" / "Dockerfile").read_text("utf-8").partition("FROM nodes AS app")[2]
    for package in ("diversity", "training", "ray_jobs"):
        assert f"COPY {package} {package}\n" in stage


def test_the_script_of_the_skypilot_task_is_one() -> None:
    task = yaml.safe_load((ROOT / "cluster" / "skypilot.yaml").read_text("utf-8"))
    done = subprocess.run(["bash", "-n"], input=task["run"], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(
        key in task["envs"] | task["secrets"] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *(one.split("=")[0] for one in KEEPALIVE))
    )


def test_the_skypilot_task_ends_its_own_ray_alone_and_with_the_works_code(tmp_path: Path) -> None:
    """`ray` and `python` are stand-ins: the one stays in the foreground as `--block` has it, the other counts nodes and works."""
    counts_then_works = '[ "$1" = -c ] || exit 3; until [ -s pid ]; do sleep 0.05; done; echo 1'
    for name, script in (("ray", 'echo "$@" >> calls; echo $$ > pid; exec sleep 60'), ("python", counts_then_works)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    task = yaml.safe_load((ROOT / "cluster" / "skypilot.yaml").read_text("utf-8"))
    nodes = {"SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}
    environment = {**os.environ, **nodes, "CONFIG": "c", "STORAGE": "s", "CORPUS": "d", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", task["run"]], cwd=tmp_path, env=environment, timeout=30, check=False)
    assert done.returncode == 3
    assert len((tmp_path / "calls").read_text().splitlines()) == 1, "it asks Ray for nothing but its start"
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


class Market:
    """A provider whose spot launches fail: what `SpotFallback` stands over, in place of EC2."""

    def __init__(self, code: str, on_demand: bool = True, settings: dict[str, Any] | None = None) -> None:
        self.code, self.on_demand, self.provider_config = code, on_demand, settings or {}
        self.asked: list[bool] = []

    def create_node_with_resources_and_labels(self, node_config: dict[str, Any], *rest: Any) -> dict[str, Any]:
        spot = "InstanceMarketOptions" in node_config
        self.asked.append(spot)
        if spot or not self.on_demand:
            raise NodeLaunchException(self.code, "none", None)
        return {"node": node_config}


@pytest.fixture
def fallback(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "cluster"))
    return importlib.import_module("spot_fallback")


SPOT = {"InstanceType": "x", "InstanceMarketOptions": {"MarketType": "spot"}}


@pytest.mark.parametrize(
    ("code", "config", "settings", "on_demand", "asked", "made"),
    [
        ("InsufficientInstanceCapacity", SPOT, {}, True, [True, False], True),
        ("InsufficientInstanceCapacity", SPOT, {}, False, [True, False], False),
        ("InsufficientInstanceCapacity", SPOT, {"on_demand_fallback": False}, True, [True], False),
        ("UnauthorizedOperation", SPOT, {}, True, [True], False),
        ("InsufficientInstanceCapacity", {"InstanceType": "x"}, {}, False, [False], False),
        ("", {"InstanceType": "x"}, {}, True, [False], True),
    ],
)
def test_on_demand_is_asked_for_where_spot_has_no_capacity_and_nowhere_else(
    fallback: Any, code: str, config: dict[str, Any], settings: dict[str, Any], on_demand: bool, asked: list[bool], made: bool
) -> None:
    provider = type("Provider", (fallback.SpotFallback, Market), {})(code, on_demand, settings)
    if made:
        assert provider.create_node_with_resources_and_labels(config, {}, 1, {}, {}) == {"node": {"InstanceType": "x"}}
    else:
        with pytest.raises(NodeLaunchException):
            provider.create_node_with_resources_and_labels(config, {}, 1, {}, {})
    assert provider.asked == asked
    assert "InstanceMarketOptions" in SPOT, "the caller's own is left as it is"


class Metadata(http.server.BaseHTTPRequestHandler):
    """EC2's instance metadata, as far as spot notices go: no notice at first, and none without the session's token."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, b"session")

    def do_GET(self) -> None:
        Metadata.asked += 1
        known = self.headers.get("X-aws-ec2-metadata-token") == "session" and self.path.endswith("/spot/instance-action")
        self._answer(200 if known and Metadata.asked > 2 else 404, b'{"action": "terminate", "time": "2030-01-01T00:00:00Z"}')

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def test_a_spot_notice_drains_the_node(tmp_path: Path) -> None:
    """The program as it runs on a node, with stand-ins for EC2's metadata and for `ray`; draining itself is in `make cluster-test`."""
    (tmp_path / "ray").write_text('#!/bin/sh\necho "$@" >> "$0.log"\n[ $(wc -l < "$0.log") -gt 1 ]\n')  # refuses once
    (tmp_path / "ray").chmod(0o755)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = f"import spot_notice; spot_notice.EVERY_S = 0.05; raise SystemExit(spot_notice.main({'ab' * 28!r}))"
    environment = {"PYTHONPATH": str(ROOT / "cluster"), "SPOT_METADATA": f"http://127.0.0.1:{server.server_port}"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PATH": f"{tmp_path}:/usr/bin:/bin", **environment}, timeout=60, check=False
    )
    server.shutdown()
    assert done.returncode == 0 and Metadata.asked == 3
    asked = (tmp_path / "ray.log").read_text().splitlines()
    assert len(asked) == 2 and asked[0].startswith(f"drain-node --node-id {'ab' * 28} --reason DRAIN_NODE_REASON_PREEMPTION")


@pytest.mark.parametrize(("v4", "v6", "is_open"), [("198.51.100.7/32", None, False), ("0.0.0.0/0", None, True), (None, "::/0", True)])
def test_a_group_that_lets_everybody_in_is_told(fallback: Any, v4: str | None, v6: str | None, is_open: bool) -> None:
    rule = {"IpRanges": [{"CidrIp": v4}] if v4 else [], "Ipv6Ranges": [{"CidrIpv6": v6}] if v6 else []}
    assert fallback.open_to_the_world([{"IpRanges": [], "Ipv6Ranges": []}, rule]) is is_open


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def printed_lines(program: str) -> set[str]:
    """Return the lines that a one-line program of a recipe prints when it runs beside pyproject.toml."""
    lines: list[str] = []
    scope = {"print": lambda *values, sep: lines.extend(sep.join(values).split(sep)), "open": lambda name, mode: (ROOT / name).open(mode)}
    exec(program, scope)  # the recipe's own text, from this repository
    return set(lines)


def test_what_a_job_takes_along_is_the_code_and_little_else(tmp_path: Path) -> None:
    """Ray's own packing with our excludes: `data` unanchored would leave out diversity/effects/data too."""
    excludes = yaml.safe_load((ROOT / "ray_jobs" / "configs" / "runtime_env.yaml").read_text("utf-8"))["excludes"]
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True, excludes=excludes)
    names = set(zipfile.ZipFile(package).namelist())
    for folder in ("diversity", "training", "ray_jobs"):
        for source in (ROOT / folder).rglob("*"):
            if source.suffix in (".py", ".csv", ".yaml"):
                assert str(source.relative_to(ROOT)) in names
    assert not [name for name in names if name.startswith((".git/", ".venv/", "runs/", "tests/")) or name.endswith(".pyc")]
    assert package.stat().st_size < 10 * 2**20, "Ray takes at most 100 MiB; the code has a hundredth of that"


def test_the_documentation_names_the_clusters_full_size(written: dict[str, Any]) -> None:
    types = written["available_node_types"]
    cpus = types["head"]["resources"]["CPU"] + sum(types[w]["resources"]["CPU"] * types[w]["max_workers"] for w in WORKERS)
    gpus = sum(types[w]["resources"]["GPU"] * types[w]["max_workers"] for w in WORKERS)
    documentation = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    data = types["cpu_worker"]["resources"]["CPU"] * types["cpu_worker"]["max_workers"]
    assert f"resources.data_workers={data} resources.max_cpus={cpus} resources.max_gpus={gpus}" in documentation
    assert written["docker"]["image"] in documentation
