"""A sweep as the tables that people analyse: Tune's own results, and a frame with Tune's columns for every cell.

    from ray_jobs.tools.frames import record, result_grid, results_frame

Tune knows the runs that it has tried. Runs that were sealed before are no trials of it, and cells that choose the same samples share one
run: the frame has a row for each of them all the same, from their seals, in the same columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs

from ray_jobs import sweep
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, inside_job

if TYPE_CHECKING:
    import pandas as pd
    from ray.tune import ResultGrid

# Columns of a run's manifest that a trial reports, too.
FIGURES = (
    "samples",
    "truncated",
    "dropped",
    "turns_dropped",
    "steps",
    "epochs",
    "response_tokens",
    "tokens",
    "first_loss",
    "last_loss",
    "setup_s",
    "train_s",
)


def results_frame(experiment: Context | Path | str, *overrides: str) -> pd.DataFrame:
    """Return a row for every trained cell and training seed, in the columns of `ResultGrid.get_dataframe()`.

    `config/run/…` say which cell it is, `scores/<evaluator>/<split>/<metric>` and figures of training come from the seals, and what only
    Tune knows (`trial_id`, `time_total_s`, `hostname` …) from its folders, empty for runs that it never tried. `sealed` says whether the
    run is finished; other rows have no figures.

    Args:
        experiment: the YAML file of an experiment, or its context.
        overrides: `key=value`, as on the command line.

    Raises:
        ArtifactError: the datasets are not sealed, so that nobody knows which runs there are.
    """
    import pandas as pd

    context = _context(experiment, overrides)
    tried = _tried(context)
    rows = []
    for run in sweep.runs(context):
        sealed = _from_seals(run)
        for key, cell in zip(run.keys, run.cells, strict=True):
            described = {"run": run.task.run, "cell": key, **cell.describe(), "training_seed": run.task.training_seed}
            config = {f"config/run/{name}": value for name, value in described.items()}
            rows.append({**tried.get(run.task.run, {}), **sealed, **config, "sealed": run.finished})
    return pd.DataFrame(rows)


def result_grid(experiment: Context | Path | str, *overrides: str) -> ResultGrid:
    """Return the results of the newest list of runs that Tune was given in this storage, as Tune itself presents them.

    Raises:
        FileNotFoundError: the storage has no folder of Tune's.
    """
    from ray.tune import ExperimentAnalysis, ResultGrid

    context = _context(experiment, overrides)
    folders = _folders(context)
    if not folders:
        raise FileNotFoundError(f"{context.storage.uri}/tune holds no results: run {context.command('sweep')}")
    return ResultGrid(ExperimentAnalysis(folders[-1], storage_filesystem=context.storage.filesystem()[0]))


def record(experiment: Context | Path | str, *overrides: str) -> str:
    """Return the path of `results.parquet`, the table of record that `analyze` sealed last.

    Raises:
        ArtifactError: nothing has been analysed yet.
    """
    results = _context(experiment, overrides).index.get("results")
    uri, mark, options = results.storage.uri.partition("?")
    return f"{uri.rstrip('/')}/{results.locate('results.parquet')}{mark}{options}"


def _context(experiment: Context | Path | str, overrides: tuple[str, ...]) -> Context:
    if isinstance(experiment, Context):
        return experiment
    path = Path(experiment)
    return Context(load_experiment(path, overrides, inside_job=inside_job()), path, overrides)


def _tried(context: Context) -> dict[str, dict[str, Any]]:
    """Return Tune's row of every run that it has tried, by the run's fingerprint; the newest where there are several."""
    from ray.tune import ExperimentAnalysis, ResultGrid

    found = {}
    for folder in _folders(context):
        frame = ResultGrid(ExperimentAnalysis(folder, storage_filesystem=context.storage.filesystem()[0])).get_dataframe()
        for row in frame.to_dict("records"):
            found[row["config/run/run"]] = {str(name): value for name, value in row.items()}
    return found


def _folders(context: Context) -> list[str]:
    """Return Tune's folders in the storage, oldest first: those that have a state to read."""
    filesystem, root = context.storage.filesystem()
    files = filesystem.get_file_info(pafs.FileSelector(f"{root}/tune", recursive=True, allow_not_found=True))
    states: dict[str, pafs.FileInfo] = {}
    for info in sorted(files, key=lambda info: info.mtime_ns or 0):
        folder, _, name = info.path.rpartition("/")
        if name.startswith("experiment_state"):
            states.pop(folder, None)
            states[folder] = info
    return list(states)


def _from_seals(run: sweep.Run) -> dict[str, Any]:
    """Return a run's figures out of its sealed model and scores, under the names that a trial reports."""
    found: dict[str, Any] = {"run": run.task.run}
    if run.task.model.sealed:
        manifest = run.task.model.manifest
        found |= {name: manifest[name] for name in FIGURES if name in manifest}
    if run.task.scores is not None and run.task.scores.sealed:
        found["score_s"] = run.task.scores.manifest["seconds"]
        for row in run.task.scores.read().to_pylist():
            found[f"scores/{row['evaluator']}/{row['split']}/{row['metric']}"] = row["value"]
    return found
