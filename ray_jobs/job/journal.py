"""What a job tells of itself in the storage, where any machine can read it: that it lives, what it prints, how it failed.

    experiments/<name>/jobs/<job>/heartbeat.json    while it runs, written again every few seconds
    experiments/<name>/jobs/<job>/failed.json       from its failure until the same stage ends well
    experiments/<name>/logs/<job>.log               its output, copied as it grows; <job>.1.log … go on after a megabyte each

A storage that can't be written now costs a line of these files, never the job.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.fs as pafs

from diversity.artifact import Storage

logger = logging.getLogger(__name__)

BEAT_S = 10.0
SILENT_S = 60.0  # without a beat for so long, a job is taken for dead
SEGMENT = 1_000_000  # characters: a log is written again while it grows, and object stores can't append
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+:[^/@\s]+@")  # of URIs


@dataclass(frozen=True)
class Told:
    """What is known of a job: `running`, `silent` (killed, or its machine is gone), or `failed`.

    Attributes:
        state: one of the three.
        facts: `job`, `stage`, `host`, `pid`, `started`, `command`, and `beat` or, of a failed one, `failed`, `error` and perhaps `runs`.
    """

    state: str
    facts: Mapping[str, Any]

    @property
    def age_s(self) -> float:
        """Return the seconds since its last sign of life, by this machine's clock."""
        return time.time() - datetime.fromisoformat(self.facts.get("failed") or self.facts["beat"]).timestamp()


class Journal:
    """Keeps a job's heartbeat and log in the storage while the block runs, and its failure after that."""

    def __init__(
        self, storage: Storage, experiment: str, stage: str, command: str, explain: Callable[[BaseException], BaseException | None]
    ) -> None:
        """Name the job by time, stage, host and process.

        Args:
            storage: of the experiment.
            experiment: its name.
            stage: what runs; a pipeline sets `stage` to what it is at.
            command: the command line that does the same again.
            explain: finds what a person can mend inside of an error, if there is anything.
        """
        self.storage, self.folder, self.stage, self._explain = storage, f"experiments/{experiment}", stage, explain
        self.job = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{stage}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._facts = {
            "job": self.job,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            **_machine(),
            "started": _now(),
            "command": without_credentials(command),
        }
        self._output = _Output()
        self._segment, self._copied = 0, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

    def __enter__(self) -> Journal:
        """Begin to beat and to listen."""
        self._output.listen()
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Tell how it ended."""
        self._stop.set()
        self._thread.join()
        self._output.end()
        if error is not None:
            found = self._explain(error)
            self._output.add(f"{self.stage}: {found}\n" if found else "".join(traceback.format_exception(error)))
            told = {"failed": _now(), "error": without_credentials(_reason(found or error)), "runs": getattr(found, "runs", None)}
            self._write("failed.json", {**self._facts, "stage": self.stage, **{name: value for name, value in told.items() if value}})
        self._copy_log()
        self._quietly(_delete, self.storage, f"{self.folder}/jobs/{self.job}/heartbeat.json")

    def hold(self, names: Sequence[str]) -> str:
        """Say that this job works under these names, whose folders it would share with another job that does.

        Returns:
            What sets this job's folders apart, where another living job of the storage holds one of the names, else "". Both say first what
            they hold and look then, so that of two at least one sees the other. Before a job is taken for dead, a beat of it is waited for,
            unless its process would be seen here, and is gone.
        """
        self._facts["holds"] = list(names)
        self._beat()
        others = [(name, told) for name in _experiments(self.storage) for told in jobs(self.storage, name)]
        for experiment, told in others:
            if told.state == "running" and told.facts["job"] != self.job and set(names) & set(told.facts.get("holds", ())):
                if _beats(self.storage, experiment, told):
                    logger.warning("job %s works on the same: this one keeps what it is at in folders of its own", told.facts["job"])
                    return self.job.rpartition("-")[2]
                logger.info("job %s is gone: going on from where it was", told.facts["job"])
        return ""

    def finished(self, stage: str) -> None:
        """Forget the jobs that failed or fell silent in a stage which has now ended well."""
        self._quietly(self._forget, stage)

    def _forget(self, stage: str) -> None:
        for told in jobs(self.storage, self.folder.rpartition("/")[2]):
            if told.state != "running" and told.facts["stage"] == stage:
                self.storage.remove_folder(f"{self.folder}/jobs/{told.facts['job']}")

    def _run(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._beat()
            self._copy_log()

    def _beat(self) -> None:
        self._write("heartbeat.json", {**self._facts, "stage": self.stage, "beat": _now()})

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        told = json.dumps(content, ensure_ascii=False, indent=1).encode()
        self._quietly(self.storage.write_bytes, f"{self.folder}/jobs/{self.job}/{name}", told)

    def _copy_log(self) -> None:
        """Write the segment that grows again, and the ones that it filled."""
        while True:
            text, more = self._output.segment(self._segment)
            if len(text) == self._copied and not more:
                return
            name = f"{self.job}.log" if self._segment == 0 else f"{self.job}.{self._segment}.log"
            content = without_credentials(text).encode("utf-8", "replace")
            if not self._quietly(self.storage.write_bytes, f"{self.folder}/logs/{name}", content):
                return  # with the next beat
            self._copied = len(text)
            if not more:
                return
            self._segment, self._copied = self._segment + 1, 0

    @staticmethod
    def _quietly(write: Callable[..., None], *arguments: Any) -> bool:
        """Do it, and return whether that went well: a job doesn't end for what it tells of itself."""
        try:
            write(*arguments)
        except (OSError, pa.ArrowException) as error:
            logger.debug("journal: %s", error)
            return False
        return True


def jobs(storage: Storage, experiment: str) -> list[Told]:
    """Return the jobs of an experiment that run, fell silent or failed, oldest first."""
    found = []
    for info in storage.list(f"experiments/{experiment}/jobs"):
        if info.type == pafs.FileType.Directory and (told := _told(storage, f"experiments/{experiment}/jobs/{info.base_name}")):
            found.append(told)
    return found


def _experiments(storage: Storage) -> list[str]:
    return [info.base_name for info in storage.list("experiments") if info.type == pafs.FileType.Directory]


def _beats(storage: Storage, experiment: str, told: Told) -> bool:
    """Wait until a job has beaten again, and return whether it has before it counts as silent."""
    while told.state == "running":
        time.sleep(min(1.0, BEAT_S))
        again = _told(storage, f"experiments/{experiment}/jobs/{told.facts['job']}")
        if again is None or again.state == "failed":
            return False  # it has ended
        if again.facts["beat"] != told.facts["beat"]:
            return True
        told = again
    return False


def without_credentials(text: str) -> str:
    """Return a text without the keys that its URIs hold."""
    return CREDENTIALS.sub("***@", text)


def _told(storage: Storage, folder: str) -> Told | None:
    for name in ("failed", "heartbeat"):
        try:
            facts = json.loads(storage.read_bytes(f"{folder}/{name}.json"))
        except FileNotFoundError:
            continue
        told = Told("failed", facts)
        return told if name == "failed" else Told("silent" if told.age_s > SILENT_S or _gone(facts) else "running", facts)
    return None


def _gone(facts: Mapping[str, Any]) -> bool:
    """Return whether the job's process would be seen from here, and isn't there."""
    here = _machine()
    if not here or any(facts.get(name) != value for name, value in here.items()):
        return False
    try:
        os.kill(facts["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's
        return False
    return False


def _machine() -> dict[str, str]:
    """Return what processes that see each other have in common; {} off Linux. Containers may share a host's name: it doesn't tell."""
    try:
        return {"boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(), "processes": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {}


def _delete(storage: Storage, path: str) -> None:
    filesystem, root = storage.filesystem()
    if storage.exists(path):
        filesystem.delete_file(f"{root}/{path}")


def _reason(error: BaseException) -> str:
    """Return an error in one line."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "interrupted" if isinstance(error, KeyboardInterrupt) else "ended from outside"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class _Output(logging.Handler):
    """Hears what a process logs and prints, and keeps it in segments."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
        self._segments: list[list[str]] = [[]]
        self._lengths = [0]
        self._text_lock = threading.Lock()
        self._streams: list[tuple[str, Any]] = []

    def listen(self) -> None:
        """Begin to hear: log records, and what is printed; the log's own handler writes to the stream as it was."""
        logging.getLogger().addHandler(self)
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            self._streams.append((name, stream))
            setattr(sys, name, _Tee(stream, self))

    def end(self) -> None:
        """Hear no more."""
        logging.getLogger().removeHandler(self)
        for name, stream in self._streams:
            setattr(sys, name, stream)
        self._streams = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record."""
        self.add(self.format(record) + "\n")

    def add(self, text: str) -> None:
        """Take a text; a bar that draws itself over and over is left out."""
        if "\r" in text:
            return
        with self._text_lock:
            if self._lengths[-1] > SEGMENT:
                self._segments.append([])
                self._lengths.append(0)
            self._segments[-1].append(text)
            self._lengths[-1] += len(text)

    def segment(self, number: int) -> tuple[str, bool]:
        """Return a segment, and whether there is one after it; those before it are let go."""
        with self._text_lock:
            for past in range(number):
                self._segments[past] = []
            return "".join(self._segments[number]), number + 1 < len(self._segments)


class _Tee:
    """A stream that is also listened to; in all else it is the stream."""

    def __init__(self, stream: TextIO, output: _Output) -> None:
        self._stream, self._output = stream, output

    def write(self, text: str) -> int:
        """Write, and let it be heard."""
        self._output.add(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
