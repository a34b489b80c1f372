"""Curves reach TensorBoard, MLflow and Weights & Biases whole, also of a run that resumed; a package that is missing is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diversity.config import UserError
from training import trackers
from training.trackers import MlflowConfig, TrackersConfig, WandbConfig, flat, open_trackers

ROWS = [{"step": step, "loss": 3.0 - step, "lr": 1e-3, "response_tokens": 10, "tokens": 20, "seconds": 0.5} for step in range(4)]


def board(folder: Path) -> list[tuple[int, str, float]]:
    """Return (step, name, value) of every scalar in a TensorBoard folder, in the order of its files, read from their records."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        content, start = path.read_bytes(), 0
        while start < len(content):
            size = int.from_bytes(content[start : start + 8], "little")
            if start + 12 + size + 4 > len(content):
                break  # the last one, torn
            event = Event.FromString(content[start + 12 : start + 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            start += 12 + size + 4
    return found


def test_tensorboard_has_every_step_once_also_of_a_resumed_run(tmp_path: Path) -> None:
    first = open_trackers(TrackersConfig(), tmp_path / "tensorboard", "run", {}, [])
    for row in ROWS[:3]:
        first.step(row)  # killed here: the checkpoint is of step 2
    again = open_trackers(TrackersConfig(), tmp_path / "tensorboard", "run", {}, ROWS[:2])
    for row in ROWS[2:]:
        again.step({**row, "mfu": 0.5})
    again.close()
    scalars = board(tmp_path / "tensorboard")
    assert [(step, value) for step, name, value in scalars if name == "train/loss"] == [(0, 3.0), (1, 2.0), (2, 1.0), (3, 0.0)]
    assert {name for _, name, _ in scalars} == {"train/loss", "train/lr", "train/response_tokens", "train/tokens", "train/mfu"}


@pytest.mark.parametrize(("module", "config"), [("mlflow", {"mlflow": MlflowConfig()}), ("wandb", {"wandb": WandbConfig(offline=True)})])
def test_a_package_that_is_missing_is_named(module: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"sft.trackers.{module} needs the package {module}.* pip install {module}"):
        open_trackers(TrackersConfig(**config), tmp_path / "tensorboard", "run", {}, [])


def test_without_tensorboard_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    open_trackers(TrackersConfig(), tmp_path / "tensorboard", "run", {}, []).step(ROWS[0])
    assert "no TensorBoard curve: tensorboardX is not installed" in caplog.text


ON_A_FULL_DISK = """
import logging, resource, sys
from pathlib import Path
from training.trackers import TrackersConfig, open_trackers
logging.basicConfig(format="%(message)s")
trackers = open_trackers(TrackersConfig(), Path(sys.argv[1]), "run", {}, [])
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
for step in range(500):
    trackers.step({"step": step, "loss": 1.0, "lr": 1.0, "tokens": 1})
trackers.close()
print("ended")
"""


def test_a_full_disk_ends_the_curve_and_not_the_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path / "tensorboard")], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "ended\n" and done.stderr.count("no TensorBoard curve from step") == 1, done.stderr
    assert len(board(tmp_path / "tensorboard")) > 10


def test_trackers_are_no_part_of_a_runs_name() -> None:
    from training.config import SftConfig

    told = SftConfig(trackers=TrackersConfig(wandb=WandbConfig()))
    assert told.identity(training_seed=0, device="cpu") == SftConfig().identity(training_seed=0, device="cpu")
    assert flat({"zero": {"stage": 1, "x": {}}, "lr": 2}) == {"zero.stage": 1, "lr": 2}


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny, which the extra `trackers` brings")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder in place of a server
    config = TrackersConfig(mlflow=MlflowConfig(tracking_uri=(tmp_path / "mlruns").as_uri()))
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    for part, failed in ((ROWS[:2], True), (ROWS[2:], False)):
        told = open_trackers(config, tmp_path / "tensorboard", "the-run", {"lr": 1e-3}, [])
        for row in part:
            told.step(row)
        told.close(failed=failed)
        (found,) = client.search_runs([client.get_experiment_by_name("sft-diversity").experiment_id])
        assert found.info.status == ("FAILED" if failed else "FINISHED")
    assert found.data.params == {"lr": "0.001"}
    assert [m.value for m in client.get_metric_history(found.info.run_id, "train/loss")] == [3.0, 2.0, 1.0, 0.0]


def test_wandb_writes_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="needs wandb, which the extra `trackers` brings")
    told = open_trackers(TrackersConfig(wandb=WandbConfig(offline=True)), tmp_path / "tensorboard", "the-run", {"lr": 1e-3}, [])
    for row in ROWS:
        told.step(row)
    told.close()
    (written,) = tmp_path.glob("wandb/offline-run-*/run-the-run.wandb")
    assert written.stat().st_size > 0 and trackers.SHOWN
