"""An analysis as a folder of small tables: all that its verdict and its figures come from, and no text of any sample.

`analyze` seals one beside its report. From it alone `sft-diversity analyze FOLDER` computes the effects again and draws the page, on a
machine that has neither the corpus nor the models; so results can be published, and checked by who reads them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import MANIFEST, ArtifactError, Storage
from diversity.effects import Plan, effects_table
from ray_jobs.report.data import Curve, ReportData
from ray_jobs.report.prompts import PromptErrors

ABOUT = "about.json"
ABOUT_NAMES = ("experiment", "note", "facts", "typings", "planned", "bands", "regenerated", "plan")
CURVES_SCHEMA = pa.schema([("typing", pa.string()), ("df", pa.int64())])


@dataclass(frozen=True)
class Analysis:
    """What an analysis is computed from.

    Attributes:
        results: RESULTS_SCHEMA.
        cells: CELLS_SCHEMA.
        coverage: COVERAGE_SCHEMA.
        sources: SOURCES_SCHEMA.
        metrics: CELL_METRICS_SCHEMA.
        distinct: DISTINCT_SCHEMA.
        prompts: SAMPLE_SCORES_SCHEMA, of the primary score.
        curves: CURVES_SCHEMA: document frequencies of the micro typings' tokens.
        about: what `ABOUT_NAMES` has: planned are cells, bands go by micro typing, the plan is its manifest.
    """

    results: pa.Table
    cells: pa.Table
    coverage: pa.Table
    sources: pa.Table
    metrics: pa.Table
    distinct: pa.Table
    prompts: pa.Table
    curves: pa.Table
    about: Mapping[str, Any]

    @classmethod
    def read(cls, table: Callable[[str], pa.Table], text: Callable[[str], bytes]) -> Analysis:
        """Return the analysis whose files two functions read, by their names."""
        return cls(**{name: table(f"{name}.parquet") for name in TABLES}, about=json.loads(text(ABOUT)))

    def save(self, folder: Path) -> None:
        """Write the tables into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            pq.write_table(getattr(self, name), folder / f"{name}.parquet", compression="zstd")
        (folder / ABOUT).write_bytes(self.spelled())

    def spelled(self) -> bytes:
        """Return `about` as it is written."""
        return (json.dumps(self.about, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()

    def effects(self) -> pa.Table:
        """Return every effect, EFFECTS_SCHEMA."""
        errors = PromptErrors(self.results, self.prompts)
        plan = Plan.of_manifest(self.about["plan"])
        return effects_table(self.results, self.metrics, self.coverage, self.sources, plan=plan, prompt_error=errors)

    def report(self, effects: pa.Table, **samples: Any) -> ReportData:
        """Return what the page shows.

        Args:
            effects: of this analysis.
            samples: `pairs` and `types`, which hold texts and so are no part of an analysis.
        """
        about = self.about
        typings = self.curves["typing"].to_numpy(zero_copy_only=False)
        frequencies = self.curves["df"].to_numpy()
        return ReportData(
            experiment=about["experiment"],
            note=about["note"],
            facts=[(name, value) for name, value in about["facts"]],
            typings=about["typings"],
            cells=self.cells,
            coverage=self.coverage,
            sources=self.sources,
            results=self.results,
            effects=effects,
            planned=about["planned"],
            distinct=self.distinct,
            curves=[Curve(typing, frequencies[typings == typing], band) for typing, band in about["bands"].items()],
            regenerated=about["regenerated"],
            **samples,
        )


TABLES = tuple(field.name for field in fields(Analysis) if field.name != "about")


def curves_table(curves: list[Curve]) -> pa.Table:
    """Return document frequencies as one table."""
    typings = [curve.typing for curve in curves for _ in range(len(curve.df))]
    df = np.concatenate([curve.df for curve in curves]) if curves else np.zeros(0)
    return pa.table({"typing": pa.array(typings, pa.string()), "df": pa.array(df.astype(np.int64))}, schema=CURVES_SCHEMA)


def read(folder: str) -> Analysis:
    """Return the analysis that lies in a folder, which is an artifact or just a folder.

    Raises:
        ArtifactError: there is none, one of an earlier version, without its tables, or one whose files are broken.
    """
    storage, inside = located(folder)
    if not storage.exists(f"{inside}{ABOUT}"):
        raise ArtifactError(f"{folder} has no {ABOUT}: give <storage>/results/<fingerprint>, as `analyze CONFIG.yaml` seals it now")
    filesystem, root = storage.filesystem()

    def table(name: str) -> pa.Table:
        try:
            return pq.read_table(f"{root}/{inside}{name}", filesystem=filesystem)
        except FileNotFoundError:
            raise ArtifactError(f"{folder} has no {name}, one of the tables that an analysis is computed from") from None
        except pa.ArrowInvalid:
            raise ArtifactError(f"{folder}: {name} is no Parquet file") from None

    try:
        found = Analysis.read(table, lambda name: storage.read_bytes(f"{inside}{name}"))
    except ValueError:
        raise ArtifactError(f"{folder}: {ABOUT} is no JSON") from None
    if lacking := [name for name in ABOUT_NAMES if name not in found.about]:
        raise ArtifactError(f"{folder}: {ABOUT} lacks {', '.join(lacking)}")
    return found


def located(folder: str) -> tuple[Storage, str]:
    """Return a storage and, as a prefix, where in it the files of a folder lie that is an artifact or just a folder."""
    storage = Storage(folder)
    if not storage.exists(MANIFEST):
        return storage, ""
    root, kind, fingerprint = folder.rsplit("/", 2)
    storage = Storage(root)
    return storage, f"{storage.artifact(kind, fingerprint).locate()}/"
