"""The driver decides once what computes; workers are told, and names hold it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from diversity.typings.embedders import EmbedderConfig
from diversity.typings.embedders.transformer import resolved_precision
from ray_jobs.job import device
from ray_jobs.job.experiment import Experiment
from ray_jobs.job.runtime import Context
from training import hardware
from training.config import SftConfig

ROOT = Path(__file__).resolve().parents[2]


def context(**values: Any) -> Context:
    base = {"experiment": "e", "corpus": {"paths": ["builtin:python-docs"]}, "grid": {"strategies": ["random"], "sizes": [8]}}
    return Context(Experiment.model_validate({**base, **values}), Path("e.yaml"))


def yes() -> bool:
    return True


def test_it_is_the_same_before_and_after_ray_connects(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray itself would find, not what lies in /dev."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    before = device.device_kind(context())
    monkeypatch.undo()
    assert before == device.device_kind(context()) == ("cuda" if ray.cluster_resources().get("GPU") else "cpu")
    said = context(resources={"use_gpu": True})
    assert device.device_kind(said) == "cuda" and device.device_kind(context(resources={"use_gpu": False})) == "cpu"
    assert device.device_kind(context(resources={"max_gpus": 4})) == "cuda"


def test_gpus_that_are_hidden_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import accelerators

    class Two:
        visible: list[str] | None = None

        def get_current_node_num_accelerators(self) -> int:
            return 2

        def get_current_process_visible_accelerator_ids(self) -> list[str] | None:
            return self.visible

    machine = Two()
    monkeypatch.setattr(accelerators, "get_accelerator_manager_for_resource", lambda name: machine)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert device.local_gpus() == 2 and device.device_kind(context()) == "cuda"
    machine.visible = []
    assert device.local_gpus() == 0 and device.device_kind(context()) == "cpu"


LOOKS = """
import ray
from pathlib import Path
from ray_jobs.job import device
from tests.ray_jobs.test_device import context

ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, logging_level="ERROR")

@ray.remote
def sees():
    import os
    return os.environ.get("CUDA_VISIBLE_DEVICES")

asked = context()
print(device.device_kind(asked), device.gpus(asked))
print(ray.get(sees.options(num_gpus=0).remote()), ray.get(sees.options(num_gpus=1).remote()))
ray.shutdown()
"""


def test_what_workers_see_with_two_gpus() -> None:
    """A worker that asked for none still sees them all: so it must be told what to compute on."""
    environment = {name: value for name, value in os.environ.items() if name not in ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS")}
    environment |= {"PYTHONPATH": str(ROOT), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    done = subprocess.run([sys.executable, "-c", LOOKS], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    decided, seen = done.stdout.strip().splitlines()[-2:]
    without, with_one = seen.split()
    assert decided == "cuda 2" and with_one in ("0", "1") and without != "", "not hidden: no empty CUDA_VISIBLE_DEVICES"


def test_precision_is_asked_of_every_node(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    joining = context(resources={"address": "auto", "use_gpu": False})
    assert device.fast_bf16_everywhere(joining, yes) is True and device.fast_bf16_everywhere(joining) is hardware.has_fast_bf16()
    own = context(resources={"use_gpu": False})
    assert device.fast_bf16_everywhere(own, yes) is True
    monkeypatch.setattr(device, "fast_bf16_everywhere", lambda asked: True)
    assert device.resolved_sft(own).precision == "bf16" and device.resolved_sft(own).zero.stage == 0
    monkeypatch.setattr(device, "fast_bf16_everywhere", lambda asked: False)
    assert device.resolved_sft(context(resources={"use_gpu": False})).precision == "fp32"


def test_a_processor_says_whether_it_has_fast_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(hardware, "CPU_FLAGS", tmp_path / "cpuinfo")
    assert hardware.has_fast_bf16() is False, "there is no such file"
    units = {"avx512f": "", "avx512f amx_bf16": "", "avx512f amx_bf16 amx_tile": "AMX", "avx512f avx512_bf16": "AVX512_BF16"}
    for flags, unit in units.items():
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        for said in (True, False):
            monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda said=said: said)
            monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda said=said: said)
            assert hardware.bf16_unit() == (unit if said else "") and hardware.has_fast_bf16() is bool(unit and said)


def test_what_is_resolved_is_in_the_name_of_a_run() -> None:
    def name(sft: SftConfig, kind: str = "cpu") -> dict[str, Any]:
        return sft.identity(training_seed=0, device=kind)

    auto = SftConfig()
    assert name(auto) == name(auto.resolved("cpu")) == name(SftConfig(precision="fp32", zero={"stage": 0}))  # type: ignore[arg-type]
    fast_bf16 = auto.resolved("cpu", fast_bf16=True)
    assert name(fast_bf16) == name(SftConfig(precision="bf16")) != name(auto) and fast_bf16.zero.stage == 0
    assert name(auto, "cuda")["zero"]["stage"] == 1 and name(SftConfig(precision="fp32"), "cuda")["zero"]["stage"] == 0


def test_embeddings_are_named_by_device_and_precision() -> None:
    config = EmbedderConfig(name="transformer", model="m")
    assert (resolved_precision(config, "cpu"), resolved_precision(config, "cuda")) == ("fp32", "bf16")
    assert resolved_precision(EmbedderConfig(name="transformer", model="m", precision="fp32"), "cuda") == "fp32"


def test_topics_are_clustered_on_a_gpu_by_faiss_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = context(resources={"use_gpu": True})
    for installed, found in (({"faiss-gpu"}, "cuda"), ({"faiss-cpu"}, "cpu"), ({"faiss-cpu", "faiss-gpu"}, "cpu")):
        monkeypatch.setattr(device, "_installed", lambda package, installed=installed: package in installed)
        assert device.faiss_device(wanted) == found and device.faiss_device(context(resources={"use_gpu": False})) == "cpu"
