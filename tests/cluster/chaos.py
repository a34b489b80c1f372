"""Random faults on a real cluster of three raylets: `python -m tests.cluster.chaos N SEED` draws fault x stage x moment.

The same seed draws the same faults at the same moments; what they hit depends on the machine.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path

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


def main(count: int, seed: int) -> int:
    """Run the trials on one cluster, and return 1 if any of them lost something."""
    machine, outcomes = Machine.start(), list[Outcome]()
    try:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            ground = Ground.lay(Path(folder) / "ground")
            print(f"without a fault: {ground.baseline(machine):.0f} s", flush=True)
            for number, (stage, fault, delay) in enumerate(drawn(count, seed), 1):
                if fault in NEED_MOUNT:
                    with mounted(Path(folder) / f"mount-{number}") as mount:
                        outcomes.append(ground.run(machine, stage, fault, delay, mount))
                else:
                    outcomes.append(ground.run(machine, stage, fault, delay))
                print(f"{number} of {count}: +{delay} s, {outcomes[-1]}", flush=True)
    finally:
        machine.stack.close()
    print("\n".join(lines(f"chaos, {count} trials, seed {seed}", [{"#": n, **one.row()} for n, one in enumerate(outcomes, 1)])))
    lost = sum(not one.sound for one in outcomes)
    print(f"{len(outcomes)} trials, {sum(bool(one.hit) for one in outcomes)} hit something, {lost} lost something")
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]), int(sys.argv[2])))
