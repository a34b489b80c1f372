"""Run the experiment's stages in order: `python -m ray_jobs.pipeline CONFIG.yaml [key=value …] [--dry-run]`."""

from __future__ import annotations

from ray_jobs.job.runtime import Context, main, run_stage


def run(context: Context) -> None:
    """Run every stage of `stages`; what is sealed already is skipped by the stages themselves."""
    for stage in context.experiment.stages:
        run_stage(context, stage)


if __name__ == "__main__":
    raise SystemExit(main("pipeline"))
