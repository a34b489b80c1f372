"""`submit` refuses what can't be before anything is sent or paid for; tests/ray_jobs/job/test_jobs.py submits to a real head."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.job_submission import JobStatus

from ray_jobs.job.experiment import load_experiment, resolved_values
from ray_jobs.tools import submit

CONFIG = Path("ray_jobs/configs/demo.yaml")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["grid.size=3"], "submit: grid.size: unknown key: did you mean 'sizes'?"),
        (["--cluster", "none.yaml"], "submit: there is no cluster file none.yaml"),
        (["--down"], "--up and --down need --cluster FILE"),
        (["--cluster", "cluster.yaml", "--down", "--detach"], "--down waits for the end of the work"),
        (["--address", "http://127.0.0.1:9"], "submit: http://127.0.0.1:9: Failed to connect"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = submit.main([str(CONFIG), *arguments])
    except SystemExit as error:
        code = int(str(error.code))
    assert code != 0 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_exit_codes(status: JobStatus, driver: int | None, code: int) -> None:
    assert submit.exit_code(status, driver) == code


def test_what_a_job_takes_along_is_the_code_and_the_resolved_configuration(tmp_path: Path) -> None:
    overrides = ["storage=here", "grid.levels=5"]
    submit.pack(resolved_values(CONFIG, overrides, inside_job=False), tmp_path)
    packed = load_experiment(tmp_path / submit.CONFIG, [], inside_job=True)
    assert packed == load_experiment(CONFIG, overrides, inside_job=False) and Path(packed.storage).is_absolute()
    names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert names == {"diversity", "training", "ray_jobs", submit.CONFIG}
    assert not list(tmp_path.rglob("*.pyc")) and (tmp_path / "diversity/effects/data").is_dir()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 10 * 2**20, "Ray takes at most 100 MiB"
    assert yaml.safe_load((tmp_path / submit.CONFIG).read_text("utf-8"))["grid"]["levels"] == 5
