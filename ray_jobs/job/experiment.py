"""One experiment's configuration: read from YAML and dotted overrides, every relative path resolved where the person stands."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from diversity.cell import SIDES, TYPINGS, Cell, GridConfig, expand, trained, typing_parts
from diversity.config import Config, ConfigError, near_matches, parse
from diversity.corpus.config import CorpusConfig
from diversity.corpus.regeneration import RegenerateConfig
from diversity.effects.plan import PlanConfig
from diversity.judging.config import JudgingConfig
from diversity.selection.strategies import DIALLED, SelectionConfig, needs, refuse_control
from diversity.typings.embedders import EmbedderConfig
from diversity.typings.encoders import check_unit
from diversity.typings.taggers import TaggerConfig
from diversity.typings.tokens import WORD, BandConfig
from diversity.typings.topics import TopicsConfig
from ray_jobs.report import ReportConfig
from training.config import SftConfig
from training.evaluators import EVALUATORS, EvaluationConfig
from training.ifd import ScorerConfig

USUAL_STAGES = ("ingest", "heldout", "profile_corpus", "build_datasets", "sweep", "analyze")
STAGES = ("ingest", "regenerate", "heldout", "profile_corpus", "build_datasets", "sweep", "answer", "judge", "analyze")  # in order


class ProfileConfig(Config):
    """How samples get their types.

    Attributes:
        embeddings: `all`: both sides are embedded, which posterior metrics look at; `needed`: only the sides that a macro typing or a
            strategy looks at, and posterior metrics of the others leave embeddings out.
        tokenizers: further units of micro typings, `{llama: /models/llama}` for `response-micro@llama`: a folder with tokenizer.json, a hub
            id or a built-in model.
        typings: those that coverage of every dataset is measured on.
        scorer: what gives every sample a quality score; null leaves the corpus's own, where `corpus.columns` names one.
    """

    embedder: EmbedderConfig = EmbedderConfig()
    topics: TopicsConfig = TopicsConfig()
    tagger: TaggerConfig = TaggerConfig()
    band: BandConfig = BandConfig()
    embeddings: Literal["all", "needed"] = "all"
    typings: list[str] = list(TYPINGS)
    tokenizers: dict[str, str] = Field(default_factory=dict)
    scorer: ScorerConfig | None = None

    @field_validator("tokenizers")
    @classmethod
    def _new_names(cls, tokenizers: dict[str, str]) -> dict[str, str]:
        for name in tokenizers:
            if name == WORD or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name):
                raise ValueError(f"{name!r} can't be a unit: letters, digits, '.' and '-', and not {WORD!r}")
        return tokenizers

    @field_validator("typings")
    @classmethod
    def _known(cls, typings: list[str]) -> list[str]:
        for typing in typings:
            typing_parts(typing)
        return typings


class ResourcesConfig(Config):
    """What is asked of the machine or cluster. None of it changes the content of corpus, profile or datasets.

    Attributes:
        address: a Ray cluster; None is RAY_ADDRESS where that is set, else a Ray of this process's own.
        num_cpus: cores of the process's own Ray; None takes all.
        data_workers: parallel tasks or actors of a data pass; None takes what the cluster has.
        use_gpu: whether training ranks and transformer embedders ask for a GPU; None means where the cluster has one.
        device: what a rank computes on; None is `cuda` where it asks for a GPU, else `cpu`. Said apart, a rank may ask for a GPU and
            compute on the CPU there, by gloo: so a grid is rehearsed on machines without GPUs.
        cpus_per_rank: cores of a training rank.
        driver_cpus: the share of a core that a trial's driver holds; above 0.
        driver_resource: whether drivers also ask for the custom resource `driver` (head or on-demand nodes of cluster.yaml).
        max_cpus: cores of the cluster at its full autoscaled size; None reads what it has now.
        max_gpus: GPUs of the cluster at its full autoscaled size; None reads what it has now.
        shards: actors that hold the rows of a typing, from which typed cells are chosen; None: a task with all rows for each typing.
        wait_s: seconds to wait for resources before giving up with exit code 3.
        price_per_gpu_hour: for the cost in a sweep's plan, in any currency; None says none.
        price_per_cpu_hour: likewise, where runs have no GPU.
        shared_storage: says that a local storage path is the same folder on every node; a probe file proves it.
    """

    address: str | None = None
    num_cpus: int | None = Field(default=None, ge=1)
    data_workers: int | None = Field(default=None, ge=1)
    use_gpu: bool | None = None
    device: Literal["cpu", "cuda"] | None = None
    cpus_per_rank: float = Field(default=1, gt=0)
    driver_cpus: float = Field(default=0.1, gt=0)
    driver_resource: bool = False
    max_cpus: float | None = Field(default=None, gt=0)
    max_gpus: float | None = Field(default=None, gt=0)
    shards: int | None = Field(default=None, ge=1)
    wait_s: float = Field(default=600, ge=0)
    price_per_gpu_hour: float | None = Field(default=None, ge=0)
    price_per_cpu_hour: float | None = Field(default=None, ge=0)
    shared_storage: bool = False


class Experiment(Config):
    """Everything that a person can say about an experiment."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: str = "runs"
    stages: list[str] = list(USUAL_STAGES)
    corpus: CorpusConfig
    model: str = "builtin:smollm2-135m"
    profile: ProfileConfig = ProfileConfig()
    selection: SelectionConfig = SelectionConfig()
    grid: GridConfig = GridConfig()
    sft: SftConfig = SftConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    regenerate: RegenerateConfig | None = None
    judging: JudgingConfig | None = None
    resources: ResourcesConfig = ResourcesConfig()
    plan: PlanConfig = PlanConfig()
    report: ReportConfig = ReportConfig()

    @field_validator("stages")
    @classmethod
    def _known(cls, stages: list[str]) -> list[str]:
        for stage in stages:
            if stage not in STAGES:
                raise ValueError(f"unknown stage {stage!r}{near_matches(stage, STAGES)}")
        return stages

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if "heldout" in self.stages and self.evaluation.heldout is None:
            raise ValueError("evaluation.heldout is null, so leave the stage heldout out of stages")
        for stage, section in (("regenerate", self.regenerate), ("answer", self.judging), ("judge", self.judging)):
            if stage in self.stages and section is None:
                raise ValueError(f"stages has {stage}: give {'regenerate' if stage == 'regenerate' else 'judging'}, or leave it out")
        if self.regenerate is not None and "regenerate" not in self.stages and "ingest" in self.stages and "heldout" in self.stages:
            raise ValueError("regenerate is given: name the stage regenerate after ingest in stages, or set it to null")
        if self.judging is not None and "sweep" in self.stages and "generate" not in [one.name for one in self.evaluation.evaluators]:
            raise ValueError("judging: runs answer by the evaluator generate, so name it in evaluation.evaluators")
        if self.judging is not None and (same := sorted({judge.name for judge in self.judging.judges} & EVALUATORS.keys())):
            raise ValueError(f"judging.judges: {same[0]} is an evaluator's name, and in the results a judge's figures stand beside its own")
        for cell in self.cells:
            refuse_control(cell)
        for unit in {typing_parts(typing)[2] for typing in self.typings} - self.tokenizers.keys() - {WORD}:
            check_unit(unit, self.profile.tokenizers)
        self._check_plan(trained(self.cells, self.grid.train))
        return self

    def _check_plan(self, cells: Sequence[Cell]) -> None:
        """Refuse a primary effect of an arm that is not trained: it would be missing for ever."""
        dialled = list(dict.fromkeys((cell.strategy, cell.control) for cell in cells if cell.level is not None))
        flat = list(dict.fromkeys((cell.strategy, cell.control) for cell in cells if cell.level is None))
        for i, primary in enumerate(self.plan.primary):
            if (primary.strategy, primary.control) not in dialled:
                arms = ", ".join(f"{{strategy: {strategy}, control: {control}}}" for strategy, control in dialled)
                told = f"{arms} {'is' if len(dialled) == 1 else 'are'}" if arms else "no arm that is dialled is; plan={} names no effect"
                raise ValueError(f"plan.primary.{i}: no cell of {primary.strategy} with control {primary.control} is trained; {told}")
            beside = list(dict.fromkeys(strategy for strategy, control in flat if control in (primary.control, "none")))
            if primary.less is not None and primary.less not in beside:
                raise ValueError(f"plan.primary.{i}.less: no cell of {primary.less} is trained{near_matches(primary.less, beside)}")

    @property
    def cells(self) -> list[Cell]:
        """Return the grid's cells in the order of the configuration."""
        return expand(self.grid, DIALLED)

    @property
    def trained_cells(self) -> list[Cell]:
        """Return the cells that `grid.train` picks for fine-tuning."""
        return trained(self.cells, self.grid.train)

    @property
    def typings(self) -> list[str]:
        """Return every typing that is made, each once.

        Those are the typings that coverage is measured on, those that the grid dials, and both of the model's own tokens, which lengths are
        counted in.
        """
        dialled = [typing for cell in self.cells for typing in needs(cell, self.grid).typings]
        return list(dict.fromkeys([*self.profile.typings, *dialled, *(f"{side}-micro" for side in SIDES)]))

    @property
    def tokenizers(self) -> dict[str, str]:
        """Return whose tokenizer each unit of a micro typing is; "" is the model's own."""
        return {"": self.model, **self.profile.tokenizers}

    @property
    def embedded_sides(self) -> list[str]:
        """Return the sides whose embeddings are made."""
        macro = {typing_parts(typing)[0] for typing in self.typings if typing_parts(typing)[1] == "macro"}
        wanted = macro.union(*(needs(cell, self.grid).embeddings for cell in self.cells))
        return [side for side in SIDES if self.profile.embeddings == "all" or side in wanted]


def load_experiment(path: Path, overrides: Sequence[str], *, inside_job: bool) -> Experiment:
    """Return the experiment of a YAML file with `dotted.key=value` overrides applied, values read as YAML.

    Args:
        path: the YAML file.
        overrides: e.g. `["grid.sizes=[1000]", "model=builtin:smollm2-135m"]`.
        inside_job: whether this is a Ray job's entrypoint, whose working folder is a private copy: a relative path means nothing there.

    Raises:
        ConfigError: anything that can't be used, in one line.
    """
    return parse(Experiment, resolved_values(path, overrides, inside_job=inside_job))


def resolved_values(path: Path, overrides: Sequence[str], *, inside_job: bool) -> dict[str, Any]:
    """Return what `load_experiment` parses: the file's values with overrides applied and paths made absolute.

    Raises:
        ConfigError: the file can't be read, or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"there is no config file {path} to be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}, not a mapping of keys to values")
    for override in overrides:
        _override(values, override)
    return resolve_paths(values, inside_job=inside_job)


def resolve_paths(values: Mapping[str, Any], *, inside_job: bool) -> dict[str, Any]:
    """Return the values with storage, corpus, held-out and model paths made absolute.

    Raises:
        ConfigError: a path is relative inside a Ray job; the message shows the absolute form to give.
    """
    resolved = dict(values)
    resolved["storage"] = _absolute("storage", resolved.get("storage", "runs"), inside_job)
    resolved["corpus"] = _with_paths("corpus", resolved.get("corpus"), inside_job)
    if isinstance(resolved["corpus"], dict) and resolved["corpus"].get("contamination") is not None:
        checked = _with_paths("corpus.contamination", resolved["corpus"]["contamination"], inside_job)
        resolved["corpus"] = {**resolved["corpus"], "contamination": checked}
    evaluation = resolved.get("evaluation")
    if isinstance(evaluation, dict) and isinstance(evaluation.get("heldout"), dict):
        heldout = dict(evaluation["heldout"])
        for name in ("out", "prompts"):
            heldout[name] = _with_paths(f"evaluation.heldout.{name}", heldout.get(name), inside_job)
        resolved["evaluation"] = {**evaluation, "heldout": heldout}
    if isinstance(resolved.get("judging"), dict):
        resolved["judging"] = _judging(resolved["judging"], inside_job)
    if "model" in resolved:
        resolved["model"] = _model("model", resolved["model"], inside_job)
    profile = resolved.get("profile")
    if isinstance(profile, dict) and isinstance(profile.get("tokenizers"), dict):
        tokenizers = {name: _model(f"profile.tokenizers.{name}", model, inside_job) for name, model in profile["tokenizers"].items()}
        resolved["profile"] = profile = {**profile, "tokenizers": tokenizers}
    if isinstance(profile, dict) and isinstance(profile.get("embedder"), dict) and "model" in profile["embedder"]:
        model = _model("profile.embedder.model", profile["embedder"]["model"], inside_job)
        resolved["profile"] = profile = {**profile, "embedder": {**profile["embedder"], "model": model}}
    if isinstance(profile, dict) and isinstance(profile.get("tagger"), dict):
        resolved["profile"] = {**profile, "tagger": _with_source("profile.tagger", profile["tagger"], "vllm", inside_job)}
    if "regenerate" in resolved:
        resolved["regenerate"] = _with_source("regenerate", resolved["regenerate"], "serve", inside_job)
    return resolved


def _judging(judging: dict[str, Any], inside_job: bool) -> dict[str, Any]:
    """Return `judging` with the paths of prompts, files of answers, local models and rubrics made absolute."""
    resolved = dict(judging)
    if isinstance(judging.get("prompts"), dict):
        sets = judging["prompts"].items()
        resolved["prompts"] = {name: _with_paths(f"judging.prompts.{name}", one, inside_job) for name, one in sets}
    if isinstance(judging.get("answerers"), list):
        resolved["answerers"] = [_answerer(one, inside_job) for one in judging["answerers"]]
    if isinstance(judging.get("judges"), list):
        resolved["judges"] = [_judge(one, inside_job) for one in judging["judges"]]
    return resolved


def _answerer(answerer: Any, inside_job: bool) -> Any:
    if not isinstance(answerer, dict):
        return answerer
    field, resolved = f"judging.answerers.{answerer.get('name')}", dict(answerer)
    if isinstance(answerer.get("files"), list):
        resolved["files"] = [_absolute(f"{field}.files", path, inside_job, in_list=True) for path in answerer["files"]]
    if "local" in answerer:
        resolved["local"] = _model(f"{field}.local", answerer["local"], inside_job)
    if "endpoint" in answerer:
        resolved["endpoint"] = _with_source(f"{field}.endpoint", answerer["endpoint"], "serve", inside_job)
    return resolved


def _judge(judge: Any, inside_job: bool) -> Any:
    if not isinstance(judge, dict):
        return judge
    field = f"judging.judges.{judge.get('name')}"
    if isinstance(judge.get("rubric"), str) and judge["rubric"].endswith(".md"):
        judge = {**judge, "rubric": _absolute(f"{field}.rubric", judge["rubric"], inside_job)}
    return _with_source(field, judge, "serve", inside_job)


def _with_source(field: str, section: Any, server: str, inside_job: bool) -> Any:
    """Return a section with the source of the model that a job serves for it made absolute."""
    serving = section.get(server) if isinstance(section, dict) else None
    if not isinstance(serving, dict) or "source" not in serving:
        return section
    return {**section, server: {**serving, "source": _model(f"{field}.{server}.source", serving["source"], inside_job)}}


def _model(field: str, model: Any, inside_job: bool) -> Any:
    """Return a model in absolute form where it is a folder."""
    folder = isinstance(model, str) and (model.startswith((".", "~")) or Path(model).is_dir())
    return _absolute(field, model, inside_job) if folder else model


def _with_paths(field: str, section: Any, inside_job: bool) -> Any:
    if not isinstance(section, dict) or not isinstance(section.get("paths"), list):
        return section
    return {**section, "paths": [_absolute(f"{field}.paths", path, inside_job, in_list=True) for path in section["paths"]]}


def _absolute(field: str, path: Any, inside_job: bool, in_list: bool = False) -> Any:
    """Return a local path in absolute form; URIs and `builtin:` names stay as they are."""
    if not isinstance(path, str) or "://" in path or path.startswith("builtin:"):
        return path
    path = os.path.expanduser(path)
    if os.path.isabs(path):
        return path
    if inside_job:
        absolute = f"$PWD/{os.path.normpath(path)}"
        shown = f'"[{absolute}]"' if in_list else absolute
        raise ConfigError(
            f"{field}: {path!r} is relative, and a Ray job's working folder is a private copy: submit it in absolute form, {field}={shown}"
        )
    return os.path.abspath(path)


def _override(values: dict[str, Any], override: str) -> None:
    """Set one dotted key."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override: give key=value, e.g. grid.sizes=[1000]")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: {text!r} is no YAML value") from None
    *parents, last = key.split(".")
    node = values
    for parent in parents:
        if not isinstance(node.setdefault(parent, {}), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = value
