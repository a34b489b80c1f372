"""`submit` refuses what can't be before anything is sent or paid for; tests/ray_jobs/job/test_jobs.py submits to a real head."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from aiohttp import web
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


class Dashboard:
    """A head's dashboard, as far as `submit` asks it, on a thread of its own; `away` makes it break every connection."""

    def __init__(self, state: str = "SUCCEEDED", driver: int = 0, refuses: bool = False, other: str = "SUCCEEDED") -> None:
        self.away, self.gone_after_job, self.tails, self.taken = False, False, 0, 0
        self.state, self.driver, self.refuses, self.other = state, driver, refuses, other
        self.loop = asyncio.new_event_loop()
        app = web.Application(middlewares=[self._break])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{scheme}/{name}", self._package)
        app.router.add_post("/api/jobs/", self._take)
        app.router.add_get("/api/jobs/", self._list)
        app.router.add_get("/api/jobs/{job}", self._tell)
        app.router.add_get("/api/jobs/{job}/logs/tail", self._tail)
        self.runner = web.AppRunner(app)
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._run(self.runner.setup())
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        self._run(site.start())
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def close(self) -> None:
        self._run(self.runner.cleanup())
        self.loop.call_soon_threadsafe(self.loop.stop)

    @web.middleware
    async def _break(self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
        if self.away and request.transport:
            request.transport.close()
        return await handler(request)

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__, "session_name": "s"})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _take(self, request: web.Request) -> web.Response:
        self.taken += 1
        if self.refuses:
            return web.Response(status=400, text="no such thing")
        if self.taken == 1 and request.transport:
            request.transport.close()  # the job is taken, and nobody hears of it
        if self.taken > 1:
            self.away = self.gone_after_job
            return web.Response(status=500, text="Job with submission_id job already exists.")
        return web.json_response({"job_id": "job", "submission_id": "job"})

    def _job(self, name: str, status: str) -> dict[str, object]:
        return {"type": "SUBMISSION", "submission_id": name, "status": status, "entrypoint": "x", "driver_exit_code": self.driver}

    async def _tell(self, request: web.Request) -> web.Response:
        return web.json_response(self._job("job", self.state))

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response([self._job("job", self.state), self._job("theirs", self.other)])

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.tails += 1
        await socket.send_str("step 1\n")
        if self.tails == 1:
            await asyncio.sleep(1.2)  # a quiet job
            assert request.transport
            request.transport.close()
        else:
            await socket.send_str("step 2\n")
            await socket.close()
        return socket


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[Dashboard]:
    made = Dashboard(**getattr(request, "param", {}))
    yield made
    made.close()


def test_a_quiet_jobs_connection_may_break(dashboard: Dashboard) -> None:
    written: list[str] = []
    assert submit.follow(submit.connect(dashboard.url), "job", written.append, lost_s=1) == 0
    assert "".join(written) == "step 1\nstep 2\n" and dashboard.tails == 2


OTHER = {"other": "RUNNING"}


@pytest.mark.parametrize(
    ("dashboard", "gone", "code", "stays"),
    [
        ({"state": "FAILED", "driver": 3}, False, 3, ""),
        ({"refuses": True}, False, 1, ""),
        ({}, True, 1, "the work may go on"),
        (OTHER, False, 0, "other jobs run there (theirs)"),
        ({"refuses": True, **OTHER}, False, 1, "other jobs run there (theirs)"),
    ],
    indirect=["dashboard"],
    ids=["ended", "refused", "not known", "ended beside another", "refused beside another"],
)
@pytest.mark.parametrize("up", [False, True])
def test_a_cluster_ends_only_where_all_work_has(
    dashboard: Dashboard, gone: bool, code: int, stays: str, up: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dashboard.gone_after_job = gone
    launched: list[str] = []
    monkeypatch.setattr(submit, "launcher", lambda *arguments, cluster: launched.append(arguments[0]))
    monkeypatch.setattr(submit, "is_up", lambda cluster: up)
    monkeypatch.setattr(submit, "follow", partial(submit.follow, lost_s=1))
    arguments = [str(CONFIG), "--name", "job", "--address", dashboard.url, "--cluster", "cluster.yaml", "--up", "--down"]
    assert submit.main(arguments) == code
    assert launched == [*([] if up else ["up"]), *([] if stays else ["down"])], "what is up is kept, and ends where nobody works"
    said = capsys.readouterr().err
    assert (f"submit: {stays}, so the cluster stays, and costs; ray down cluster.yaml ends it" in said) if stays else "stays" not in said


@pytest.mark.parametrize("up", [False, True])
def test_a_head_that_does_not_answer_ends_only_where_nobody_else_can_work(
    up: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launched: list[str] = []
    monkeypatch.setattr(submit, "launcher", lambda *arguments, cluster: launched.append(arguments[0]))
    monkeypatch.setattr(submit, "is_up", lambda cluster: up)
    arguments = [str(CONFIG), "--address", "http://127.0.0.1:9", "--cluster", "cluster.yaml", "--up", "--down"]
    assert submit.main(arguments) == 1
    assert launched == ([] if up else ["up", "down"])
    assert (submit.NOT_KNOWN in capsys.readouterr().err) == up


def test_a_cluster_that_is_not_up_is_told_of_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cluster = tmp_path / "ssh.yaml"
    cluster.write_text(Path("cluster/ssh.yaml").read_text("utf-8").replace("cluster_name: sft-diversity", f"cluster_name: {tmp_path.name}"))
    assert submit.main([str(CONFIG), "--cluster", str(cluster)]) == 1
    assert f"submit: no head of {cluster} is up; add --up" in capsys.readouterr().err


LIKE_RAYS = """
import pathlib, subprocess, sys
with subprocess.Popen(["sleep", "60"]) as ssh, pathlib.Path(sys.argv[1]).open("a") as told:
    print(ssh.pid, file=told, flush=True)
sys.exit("ssh: the link is cut")
"""


def test_a_tunnel_is_made_again_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = tmp_path / "pids"
    monkeypatch.setattr(submit, "AGAIN_S", 0.1)
    monkeypatch.setattr(submit, "ray_command", lambda *_, cluster: ([sys.executable, "-c", LIKE_RAYS, str(told)], dict(os.environ)))

    def started(number: int) -> int:
        deadline = time.monotonic() + 20
        while not told.exists() or len(told.read_text().splitlines()) < number:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return int(told.read_text().splitlines()[number - 1])

    with submit.tunnel(Path("cluster.yaml")):
        os.kill(started(1), signal.SIGKILL)
        last = started(2)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{last}/stat").exists() and Path(f"/proc/{last}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "its SSH goes on"
        time.sleep(0.05)
    assert "ssh: the link is cut" in caplog.text
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with submit.tunnel(Path("cluster.yaml")):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nohup's wish counts"
    finally:
        signal.signal(signal.SIGHUP, before)
