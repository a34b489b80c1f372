"""The quick form of `python -m benchmarks.crash_points`: a few of its hundreds of points, killed for real."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_process_killed_at_any_of_its_changes_goes_on_to_the_same_bytes() -> None:
    command = [sys.executable, "-m", "benchmarks.crash_points", "--points", "6", "--twice"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = re.findall(r"^\| all \| (\d+) \| (\d+) \| (\d+) \|", done.stdout, re.M)
    changes, killed, same = map(int, row)
    assert changes > 300 and killed == same == 6
