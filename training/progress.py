"""What people see of a run: a line before it starts, a line every few seconds, and the figures that its manifest keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from training.packing import Step
from training.zero import Memory, ModelShape

logger = logging.getLogger("training.sft")

PROGRESS_EVERY_S = 5.0


def describe(counts: Mapping[str, int], steps: Sequence[Step], shape: ModelShape, needed: Memory, ranks: int) -> str:
    """Return one line on what is about to be trained."""
    turns = f", {counts['turns_dropped']} turns of others dropped" if counts["turns_dropped"] else ""
    response, total = sum(step.response_tokens for step in steps), sum(step.tokens for step in steps)
    return (
        f"{counts['samples']} samples ({counts['truncated']} cut, {counts['dropped']} dropped{turns}), {len(steps)} steps of about "
        f"{response // len(steps)} response tokens in {total // len(steps)}, {steps[-1].epoch:.2f} epochs; "
        f"{shape.parameters / 1e6:.1f}M parameters, {shape.trainable / 1e6:.1f}M learn, on {ranks} rank{'s' * (ranks > 1)}: {needed}"
    )


class Progress:
    """Rank 0's line every few seconds: step, loss, tokens a second, MFU, time left."""

    def __init__(self, steps: int, done: int, *, ceiling: float, speaks: bool) -> None:
        """Begin.

        Args:
            steps: of the run.
            done: steps that a checkpoint brought.
            ceiling: operations a second that all ranks' matrix units can do.
            speaks: whether this is rank 0.
        """
        self.steps, self.first, self.ceiling, self.speaks = steps, done, ceiling, speaks
        self.started = self.told = time.perf_counter()

    def tell(self, rows: Sequence[dict[str, Any]]) -> None:
        """Say where the run stands, if it is time."""
        now, done = time.perf_counter(), len(rows)
        if not self.speaks or (done < self.steps and now - self.told < PROGRESS_EVERY_S):
            return
        self.told = now
        seconds = max(now - self.started, 1e-9)
        new = rows[self.first :]
        speed = sum(row["tokens"] for row in new) / seconds
        mfu = sum(row["flops"] for row in new) / seconds / self.ceiling
        left = seconds / max(len(new), 1) * (self.steps - done)
        logger.info(
            "step %d of %d: loss %.4f, %.0f tokens/s, MFU %.0f%%, %.0f s left", done, self.steps, rows[-1]["loss"], speed, 100 * mfu, left
        )


def summary(
    counts: Mapping[str, int],
    steps: Sequence[Step],
    rows: Sequence[dict[str, Any]],
    started: Mapping[str, float],
    ceiling: float,
    *,
    first: int = 0,
) -> dict[str, Any]:
    """Return a finished run's figures. Those by second leave the first step out, in which kernels are chosen and memory is found.

    Args:
        counts: samples that were used, cut and dropped, and turns that were dropped of those used.
        steps: the plan.
        rows: what became of them.
        started: seconds of every part of the start.
        ceiling: as for `Progress`.
        first: number of the first step that this process took.
    """
    warm = [row for row in rows if row["step"] != first] or rows

    def a_second(kind: str) -> float:
        return float(sum(row[kind] for row in warm) / max(sum(row["seconds"] for row in warm), 1e-9))

    return {
        **counts,
        "steps": len(rows),
        "epochs": steps[-1].epoch,
        "response_tokens": sum(row["response_tokens"] for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "setup_s": sum(started.values()),
        "setup": dict(started),
        "train_s": sum(row["seconds"] for row in rows),
        "tokens_per_s": a_second("tokens"),
        "response_tokens_per_s": a_second("response_tokens"),
        "mfu": a_second("flops") / ceiling,
        "matmul_flops": ceiling,
    }
