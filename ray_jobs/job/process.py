"""What every process of ours sets up, driver and Ray worker alike. It imports nothing of ours: each worker pays for what stands here."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

PACKAGES = ("diversity", "training", "ray_jobs")


def cache_folder() -> Path:
    """Return the node-local folder for what can be made again: `SFT_DIVERSITY_CACHE`, else `~/.cache/sft-diversity`."""
    return Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity")


def configure_process() -> None:
    """Set up logging, and where numba keeps compiled code; runs in the driver and, by `configure_worker`, in every Ray worker."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stderr)
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)
    # It asks for the dashboard, which a Ray of one process does not start, and warns every second that it got no answer.
    logging.getLogger("ray.train.v2._internal.execution.controller.placement_group_cleaner").setLevel(logging.ERROR)
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"sft-diversity-numba-{os.getuid()}"))


def configure_worker() -> None:
    """Set up a Ray worker, as its set-up hook. Whoever looks for "the" Ray in it finds its own where a machine runs several."""
    import ray

    configure_process()
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
