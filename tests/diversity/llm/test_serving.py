"""A server ends with whoever started it, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diversity.llm import serving
from diversity.llm.model import ServeConfig

FAKE = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""
PROGRAM = f"""
import time, urllib.request
from diversity.llm import serving
from diversity.llm.model import ServeConfig
serving.COMMANDS["vllm"] = ["-c", {FAKE!r}]
server = serving.Server(ServeConfig(wait_s=20), "m")
print(urllib.request.urlopen(server.url).read().decode(), flush=True)
time.sleep(100)
"""


def gone(pid):
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_ends_with_a_process_that_is_killed(number):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    job = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, env=environment)
    server = int(job.stdout.readline())
    assert not os.kill(server, 0)
    job.send_signal(number)
    job.wait()
    assert gone(server)


def test_a_server_is_closed_and_one_that_does_not_come_up_is_told(monkeypatch):
    monkeypatch.setitem(serving.COMMANDS, "vllm", ["-c", FAKE])
    server = serving.Server(ServeConfig(wait_s=20), "m")
    started = time.monotonic()
    server.close()
    assert gone(server._process.pid) and time.monotonic() - started < 5
    monkeypatch.setitem(serving.COMMANDS, "vllm", ["-c", "print('no such model'); raise SystemExit(3)"])
    with pytest.raises(serving.ServerError, match="vllm serve m does not answer: no such model"):
        serving.Server(ServeConfig(wait_s=20), "m")
