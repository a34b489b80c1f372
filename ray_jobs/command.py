"""`sft-diversity <stage or tool> …`: the same as `python -m ray_jobs.<stage or tool> …`."""

from __future__ import annotations

import runpy
import sys

from diversity.config import near_matches
from ray_jobs.experiment import STAGES

TOOLS = ("measure", "certify", "explain", "export", "pick", "power", "compare", "status", "clean")
COMMANDS = ("pipeline", *STAGES, *TOOLS)


def main() -> None:
    """Run the named module as a program; its exit code is ours."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        print(f"usage: sft-diversity COMMAND …: unknown command {name!r}{near_matches(name, COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = sys.argv[1:]
    runpy.run_module(f"ray_jobs.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
