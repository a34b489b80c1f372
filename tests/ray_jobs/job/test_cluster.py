"""cluster.yaml is valid for Ray, starts the right nodes for each stage, keeps the token on, and agrees with its documentation."""

from __future__ import annotations

import copy
import functools
import json
import re
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

ROOT = Path(__file__).resolve().parents[3]
WORKERS = ("cpu_worker", "gpu_worker")


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    return prepare_config(copy.deepcopy(written))


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
    """A driver holds 0.1 CPU and 0.01 `driver` (RAY.md), and there is at most one for each GPU."""
    types = prepared["available_node_types"]
    drivers = types["gpu_worker"]["resources"]["GPU"] * types["gpu_worker"]["max_workers"]
    head = types["head"]["resources"]
    assert 0.1 * drivers <= head["CPU"] and 0.01 * drivers <= head["driver"]


def test_the_token_is_asked_for_on_every_node(written: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in written["docker"]["run_options"]
    for role in ("head", "worker"):
        (start,) = [command for command in written[f"{role}_start_ray_commands"] if "ray start" in command]
        assert start.startswith("RAY_AUTH_MODE=token ray start ")
    # Ray reads ~/.ray/auth_token where no variable names another file, and the image's home is /home/ray.
    assert written["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "ENV RAY_AUTH_MODE=token" in (ROOT / "docker" / "Dockerfile").read_text("utf-8")


def test_every_node_installs_the_pinned_packages(written: dict[str, Any]) -> None:
    pins = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    image = written["docker"]["image"]
    assert re.fullmatch(rf"rayproject/ray:{re.escape(pins['ray'])}-py3\d+-gpu", image)
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text("utf-8")
    assert f"FROM {image}\n" in dockerfile
    (setup,) = written["setup_commands"]
    for recipe in (setup, dockerfile):
        assert "-c constraints.txt -r /tmp/packages.txt" in recipe
        printed = re.search(r'python -c "(.*?)"', recipe.replace("\\\n", ""), re.DOTALL)
        assert printed is not None
        assert printed_lines(printed.group(1)) >= set(project()["dependencies"] + project()["optional-dependencies"]["gpu"])


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
