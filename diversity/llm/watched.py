"""Runs a command until it ends, or until whoever holds the other end of standard input is gone: `python watched.py COMMAND …`.

It ends its whole process group, which it must lead. A pipe is closed with the process that holds it, a killed one too; the signal that
Linux sends at a parent's death comes with the death of a thread already.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 20


def main(words: list[str]) -> int:
    """Run a command and return its exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # sent to the group: the command ends by it, and this one when it has ended
    server = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_with_input, daemon=True).start()
    return server.wait()


def _end_with_input() -> None:
    """End the process group when standard input does."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
