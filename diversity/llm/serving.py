"""A server of a model as a child process: `vllm serve`, or `transformers serve`; it ends with who started it, however that ends.

Between the two stands `watched.py`, which holds the other end of a pipe.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from diversity.config import UserError
from diversity.llm.model import ServeConfig

COMMANDS = {
    "vllm": ["-m", "vllm.entrypoints.cli.main", "serve"],
    "transformers": ["-m", "transformers.cli.transformers", "serve"],
}


class ServerError(UserError):
    """A server that does not come up; the message says what it said last."""


def command(config: ServeConfig, model: str, host: str, port: int) -> list[str]:
    """Return the server's command line.

    Args:
        config: engine and flags.
        model: the name that requests use.
        host: address to listen on.
        port: to listen on.
    """
    source = config.source or model
    flags: dict[str, Any] = dict(config.arguments)
    if config.engine == "vllm":
        flags = {"served_model_name": model, "tensor_parallel_size": max(1, config.gpus), **flags}
    words = [sys.executable, *COMMANDS[config.engine], source, "--host", host, "--port", str(port)]
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [] if value is False else [flag, str(value)]
    return words


class Server:
    """A running server. `url` is what clients are given."""

    def __init__(self, config: ServeConfig, model: str, host: str = "127.0.0.1") -> None:
        """Start it and wait until it answers.

        Raises:
            ServerError: it ended, or did not answer within `wait_s`.
        """
        with socket.socket() as probe:
            probe.bind((host, 0))
            port = probe.getsockname()[1]
        self.url = f"http://{host}:{port}/v1"
        self._log = Path(tempfile.mkdtemp(prefix="sft-diversity-")) / "server.log"
        with self._log.open("wb") as log:
            words = [sys.executable, "-P", str(Path(__file__).with_name("watched.py")), *command(config, model, host, port)]
            self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        waits = time.monotonic() + config.wait_s
        while not _answers(f"http://{host}:{port}/health"):
            if self._process.poll() is not None or time.monotonic() > waits:
                said = self._log.read_text(errors="replace").strip().splitlines()[-3:]
                self.close()
                raise ServerError(f"{config.engine} serve {model} does not answer: {' | '.join(said)[-600:] or 'it said nothing'}")
            time.sleep(0.1)

    def close(self) -> None:
        """End the server and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False
