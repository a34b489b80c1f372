"""An analysis once more, from its own tables: `sft-diversity analyze FOLDER [--html FILE] [--picture FILE] [--save FOLDER]`.

FOLDER is `<storage>/results/<fingerprint>`, which `analyze CONFIG.yaml` sealed, or a copy of its files. Effects are computed anew, the
verdict is printed, and the page is written: the same one, but for what holds texts of samples.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diversity.config import UserError
from ray_jobs.job.runtime import absolute, tool
from ray_jobs.report.data import ReportData
from ray_jobs.report.dose import picture
from ray_jobs.report.folder import read
from ray_jobs.report.page import render, write
from ray_jobs.report.score_plots import scores
from ray_jobs.report.text import told

USAGE = "From the tables of an analysis: sft-diversity analyze FOLDER [--html FILE] [--picture FILE] [--save FOLDER]"


def asked(argv: Sequence[str]) -> bool:
    """Return whether a command line of `analyze` names a folder of tables rather than a configuration."""
    parser = _parser(add_help=False)
    parser.add_argument("folder", nargs="?", default=".yaml")
    return not parser.parse_known_args(argv)[0].folder.endswith((".yaml", ".yml"))


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = _parser(description="Compute an analysis again, from its own tables.")
    parser.add_argument("folder", help="<storage>/results/<fingerprint>, or a copy of its files")
    return parser.parse_args(argv)


def _parser(**options: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sft-diversity analyze", **options)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write one SVG: the primary score against measured coverage")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="copy the tables: all that is needed to do this again")
    return parser


@tool("analyze")
def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdict, write what is asked for, and return the exit code."""
    given = arguments(argv)
    if given.folder.endswith(".parquet"):
        raise UserError(f"give the folder of {given.folder}: the other tables lie beside it")
    analysis = read(absolute(given.folder.rstrip("/")))
    data = analysis.report(analysis.effects())
    print(told(data))
    if given.save:
        analysis.save(given.save)
    if given.picture:
        write(given.picture, _picture(data))
        print(f"\npicture: {given.picture}")
    if given.html:
        write(given.html, render(data))
        print(f"\npage: {given.html}")
    return 0


def _picture(data: ReportData) -> str:
    found = scores(data.results)
    if not found:
        raise UserError("no picture: nothing is scored yet")
    return picture(data.cells, data.results, found[0], data.coverage, data.note or data.experiment)
