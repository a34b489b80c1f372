"""Random faults on a real cluster of three raylets: `python -m tests.cluster.chaos N SEED [SKIP]` draws fault x stage x moment.

The same seed draws the same faults at the same moments; what they hit depends on the machine. SKIP passes over the first draws, to go
on where an earlier run ended. A fault in a data stage is followed to the end of the data stages: equal bytes train equally.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.cluster import tiny
from tests.cluster.conftest import lines
from tests.cluster.faults import IN_DATA, IN_SWEEP, NEED_MOUNT
from tests.cluster.ground import Ground, Outcome, mounted
from tests.cluster.machine import Machine

LONGEST_DELAY_S = {"ingest": 2.0, "profile": 6.0, "build": 4.0, "sweep": 15.0}


def drawn(count: int, seed: int) -> list[tuple[str, str, float]]:
    """Return (stage, fault, delay in seconds) of every trial."""
    rng, found = random.Random(seed), []
    allowed = [(stage, fault) for stage in LONGEST_DELAY_S for fault in (IN_SWEEP if stage == "sweep" else IN_DATA)]
    for _ in range(count):
        stage, fault = rng.choice([one for one in allowed if os.geteuid() == 0 or one[1] not in NEED_MOUNT])
        found.append((stage, fault, round(rng.uniform(0, LONGEST_DELAY_S[stage]), 1)))
    return found


def main(count: int, seed: int, skip: int = 0) -> int:
    """Run the draws after the first `skip` on one cluster, a line of the table as each ends, and return 1 if any of them lost something."""
    machine, outcomes = Machine.start(), list[Outcome]()
    try:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            ground = Ground.lay(Path(folder) / "ground")
            print(f"chaos, seed {seed}; without a fault: {ground.baseline(machine):.0f} s", flush=True)
            for number, (stage, fault, delay) in list(enumerate(drawn(count, seed), 1))[skip:]:
                stages = tiny.ALL_STAGES if stage == "sweep" else tiny.DATA_STAGES
                with ExitStack() as stack:
                    mount = stack.enter_context(mounted(Path(folder) / f"mount-{number}")) if fault in NEED_MOUNT else None
                    outcomes.append(ground.run(machine, stage, fault, delay, mount, stages))
                table = list(lines("", [{"#": number, "seconds in": delay, **outcomes[-1].row()}]))
                print("\n".join(table[1:] if len(outcomes) == 1 else table[3:]), flush=True)
    finally:
        machine.stack.close()
    lost = sum(not one.sound for one in outcomes)
    print(f"{len(outcomes)} trials, {sum(bool(one.hit) for one in outcomes)} hit something, {lost} lost something")
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
