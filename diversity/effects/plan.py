"""What is named before anything is trained: primary effects, the smallest that matters, and the runs after which they are looked at.

A finding that was named beforehand is confirmatory, and Holm runs over those alone; whatever else is found is exploratory. A plan counts
only if it was sealed before the first of its runs was scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import Field

from diversity.config import Config
from diversity.effects.regression import Slope, equivalence_p
from diversity.effects.schema import PLANNED_SCHEMA, SCORE, Row
from diversity.effects.slopes import adjust

STOPPING = "every planned run is scored"


class PrimaryConfig(Config):
    """One primary effect.

    Attributes:
        strategy: whose slope on level it is, or with `less` whose datasets at the highest level.
        control: what is held fixed.
        less: the strategy without a level that is taken away; None for the slope.
    """

    strategy: str
    control: str = "none"
    less: str | None = None

    def names(self, row: Row) -> bool:
        """Return whether a row of effects is this one."""
        kind = "slope" if self.less is None else "contrast"
        same = (row["kind"], row["strategy"], row["control"]) == (kind, self.strategy, self.control)
        return same and (self.less is None or row["other"].split(", ")[0] == self.less)


class PlanConfig(Config):
    """What is decided beforehand.

    Attributes:
        primary: the effects that the experiment is made for, on the primary score; all else is exploratory.
        margin: the smallest change of the primary score that matters, in its units; None: equivalence is not tested.
    """

    primary: list[PrimaryConfig] = Field(default_factory=list)
    margin: float | None = Field(default=None, gt=0)


@dataclass(frozen=True)
class Plan:
    """A plan as it was sealed.

    Attributes:
        config: primary effects and margin.
        planned: rows of PLANNED_SCHEMA.
        scored_before: how many of its runs had a score when it was sealed; above 0 nothing is confirmatory.
    """

    config: PlanConfig
    planned: pa.Table
    scored_before: int = 0

    @classmethod
    def of_manifest(cls, manifest: dict[str, Any]) -> Plan:
        """Return the plan that a sealed manifest holds."""
        planned = [dict(zip(PLANNED_SCHEMA.names, row, strict=True)) for row in manifest["runs"]]
        config = PlanConfig.model_validate(manifest["plan"])
        return cls(config, pa.Table.from_pylist(planned, schema=PLANNED_SCHEMA), manifest["scored_before"])

    def manifest(self) -> dict[str, Any]:
        """Return what is sealed."""
        runs = [[row[name] for name in PLANNED_SCHEMA.names] for row in self.planned.to_pylist()]
        return {
            "plan": self.config.model_dump(mode="json"),
            "runs": runs,
            "stopping": STOPPING,
            "scored_before": self.scored_before,
        }


def mark(rows: Sequence[Row], plan: Plan | None) -> None:
    """Write role, margin and p of equivalence into slopes on level and contrasts, and Holm's p over the confirmatory ones.

    Args:
        rows: of effects, with Holm's p over what was explored together.
        plan: as sealed; None leaves the rows without a role.
    """
    if plan is None:
        return
    tested = [row for row in rows if row["kind"] == "contrast" or (row["kind"] == "slope" and row["method"] == "ols")]
    tested = [row for row in tested if row.get("predictor") in (None, "level") and row.get("size") is not None]
    for row in tested:
        named = bool(row["primary"]) and row.get("subset") == "all" and any(one.names(row) for one in plan.config.primary)
        row["role"] = "confirmatory" if named and not plan.scored_before else "exploratory"
        if plan.config.margin is not None and row["primary"] and row.get("p") is not None:
            line = Slope(row["estimate"], row["se"], row["dof"], row["n"], float("nan"), float("nan"))
            row["margin"], row["p_equivalence"] = plan.config.margin, equivalence_p(line, plan.config.margin)
    adjust([row for row in tested if row["role"] == "confirmatory"], SCORE)
