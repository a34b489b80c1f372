"""S3 servers of a test's own: outside programs on a port of this machine, which can be away for a while."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

import pyarrow.fs as pafs
import pytest

from diversity.artifact import Storage
from tests.ray_jobs.heads import free_ports, wait_for

# Amazon's client ends each upload with a checksum of a newer kind, which servers that don't know it store as content.
os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "WHEN_REQUIRED")

TOOLS = Path(os.environ.get("CLUSTER_TOOLS", Path(__file__).resolve().parents[1] / ".venv" / "cluster-tools"))  # of `make cluster-tools`
COMMANDS = {
    "moto": (os.environ.get("SFT_DIVERSITY_MOTO_SERVER", str(TOOLS / "bin" / "moto_server")), "-H {host} -p {port}"),
    "s3rver": (
        os.environ.get("SFT_DIVERSITY_S3RVER", str(TOOLS / "node_modules" / ".bin" / "s3rver")),
        "-d {folder} -a {host} -p {port} --silent",
    ),
    "ceph": (str(Path(__file__).with_name("ceph.sh")), "{folder} {port} {secret}"),
}
SERVERS = sorted(COMMANDS)
LASTING = ["ceph", "s3rver"]  # these hold what they were given when they are killed and started again
SECRET = "S3RVER"  # key and secret; s3rver knows no other pair


def uri(address: str, path: str) -> str:
    """Return the URI of a path in the bucket `data` of a server."""
    return f"s3://{SECRET}:{SECRET}@data/{path}?scheme=http&region=us-east-1&endpoint_override={address}"


class Server:
    """A running S3 server with a bucket `data`; the test is skipped where the program isn't there."""

    def __init__(self, name: str, folder: Path) -> None:
        program, options = COMMANDS[name]
        if name == "ceph" and (shutil.which("radosgw") is None or os.geteuid() != 0):
            pytest.skip("needs root and Ceph: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd")
        if not Path(program).exists():
            pytest.skip(f"needs {name}: make cluster-tools")
        host, port = "127.0.0.1", free_ports(1)[0]
        self.address = f"{host}:{port}"
        (folder / "data").mkdir(parents=True, exist_ok=True)  # s3rver's buckets are folders
        self._folder = folder
        self._command = [program, *options.format(host=host, port=port, folder=folder, secret=SECRET).split()]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program and wait until it answers."""
        environment = {**os.environ, "NODE_OPTIONS": "--openssl-legacy-provider"}  # s3rver's tokens of long listings want an old cipher
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        wait_for(self._answers, 120, self._command[0])

    def kill(self) -> None:
        """Kill the program."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def away(self, seconds: float) -> threading.Thread:
        """Kill the program and start it again after so many seconds; return the thread that does."""
        self.kill()

        def back() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=back)
        thread.start()
        return thread

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://{self.address}/", timeout=5)
        except urllib.error.HTTPError:
            return True  # it wants a signature
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def __enter__(self) -> Server:
        self.start()
        filesystem, _ = pafs.FileSystem.from_uri(uri(self.address, "") + "&allow_bucket_creation=true")
        filesystem.create_dir("data")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        for behind in self._folder.glob("*.pid"):  # what stands behind the gateway of Ceph
            os.kill(int(behind.read_text()), signal.SIGKILL)


def through_an_outage(server: Server, seconds: float) -> dict[str, str]:
    """Write while the server is away for so many seconds, with our filesystem and with pyarrow's own; return what became of either."""
    outcomes = {}
    storage = Storage(uri(server.address, "outage"))
    own, root = pafs.FileSystem.from_uri(storage.uri)
    thread = server.away(seconds)
    started = time.monotonic()
    try:
        with own.open_output_stream(f"{root}/own", compression=None) as stream:
            stream.write(b"x")
        outcomes["pyarrow's own"] = "went on"
    except OSError:
        outcomes["pyarrow's own"] = f"gave up after {time.monotonic() - started:.1f} s"
    try:
        storage.write_bytes("ours", b"x")
        outcomes["ours"] = "went on" if storage.read_bytes("ours") == b"x" else "other bytes"
    except OSError:
        outcomes["ours"] = f"gave up after {time.monotonic() - started:.1f} s"
    thread.join()
    return outcomes
