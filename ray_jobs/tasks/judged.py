"""Names of what judging makes, and the small artifacts that several stages read: prompts, and the answers of everyone who answers."""

from __future__ import annotations

import logging
from typing import Any

from diversity.artifact import Artifact, fingerprint
from diversity.corpus.inputs import Inputs
from diversity.judging.config import AnswererConfig, JudgingConfig
from diversity.judging.prompt_sets import read_prompt_sets
from diversity.typings import encoders
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, needed, once
from training.evaluators import EvaluatorConfig
from training.model_source import model_digest, resolve_model

logger = logging.getLogger(__name__)

VERSION = 2


def judging(context: Context) -> JudgingConfig:
    """Return `judging` of the configuration.

    Raises:
        ConfigError: it is null.
    """
    return needed(context.experiment.judging, "judging", "say which prompts are answered and who judges")


@once
def prompts_artifact(context: Context) -> Artifact:
    """Return the artifact of the prompt sets."""
    config = judging(context)
    files = {name: roots(one.paths) for name, one in config.prompts.items()}
    name = fingerprint(stage="prompts", version=VERSION, config={"sets": config.prompts_identity(), "files": files})
    return context.storage.artifact("prompts", name)


def roots(paths: list[str]) -> list[str]:
    """Return what names the content of files."""
    return Inputs(paths, cache_folder() / "digests.json").roots


def seal_prompts(context: Context) -> Artifact:
    """Return the prompt sets, sealed now or before, and enter them into the index."""
    artifact = prompts_artifact(context)
    if not artifact.sealed:
        table, counts = read_prompt_sets(judging(context).prompts)
        target = artifact.begin()
        target.write(table)
        target.seal({"stage": "prompts", "version": VERSION, "sets": counts})
        for name, one in counts.items():
            logger.info("prompts: %s: %s", name, ", ".join(f"{count} {what}" for what, count in one.items()))
    context.index.add("prompts", None, artifact)
    return artifact


def run_answers(context: Context, scores: Artifact) -> Artifact:
    """Return the artifact of a run's answers, which lie in its scores."""
    parents = [scores.fingerprint, prompts_artifact(context).fingerprint]
    return context.storage.artifact("answers", fingerprint(stage="answer/run", version=VERSION, parents=parents))


def answerer_answers(context: Context, answerer: AnswererConfig) -> Artifact:
    """Return the artifact of an answerer's answers."""
    config: dict[str, Any]
    if answerer.endpoint is not None:
        config = {"endpoint": answerer.endpoint.parameters(), **answerer.endpoint.endpoint.identity()}
    elif answerer.local is not None:
        folder = resolve_model(answerer.local, cache_folder())
        identity = generate_options(context).identity
        config = {"local": model_digest(folder, cache_folder()), "generate": identity, "encoder": encoders.VERSION}
    else:
        config = {"files": roots(answerer.files or []), "generator": answerer.generator}
    parents = [prompts_artifact(context).fingerprint]
    return context.storage.artifact("answers", fingerprint(stage="answer", version=VERSION, config=config, parents=parents))


class Generate:
    """The options of the evaluator `generate`, by which runs and local models answer alike."""

    def __init__(self, evaluator: EvaluatorConfig) -> None:
        self.options = evaluator.parsed()

    @property
    def identity(self) -> dict[str, Any]:
        """Return what decides answers."""
        return self.options.model_dump(mode="json", exclude={"splits", "max_samples"})


def generate_options(context: Context) -> Generate:
    """Return how runs and local models answer; the evaluator's defaults where the configuration doesn't name it."""
    named = [one for one in context.experiment.evaluation.evaluators if one.name == "generate"]
    return Generate(named[0] if named else EvaluatorConfig(name="generate"))


def ledger(context: Context, what: str) -> str:
    """Return the name of a budget's journal."""
    return f"{context.experiment.experiment}-{what}"
