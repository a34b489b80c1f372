"""Taggers: classes that load in `__init__` and turn a list of texts into a list of tags each in `__call__`; one file each.

A text's tags are raw, ranked, the most telling first; `diversity/typings/tags.py` normalises them over the corpus.
To add one: a file with such a class, and a line in `TAGGERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from diversity.artifact import Storage
from diversity.config import Config, UserError, lookup, near_matches
from diversity.llm.asking import check_transport
from diversity.llm.budget import BudgetConfig
from diversity.llm.endpoint import EndpointConfig

TAGGERS = {
    "keyphrase": "diversity.typings.taggers.keyphrase:KeyphraseTagger",
    "llm": "diversity.typings.taggers.llm:LlmTagger",
}
_TRANSPORT = {"base_url", "endpoint", "budget", "vllm"}


class TaggerError(UserError):
    """A tagger that does not do what it is asked; the message says what it did."""


class LlmConfig(Config):
    """What a language model is asked for, beside the prompt.

    Attributes:
        temperature: of its sampling.
        max_tokens: of an answer.
        structured: how the form of the answer is enforced: by a JSON schema, as any JSON, or by the prompt alone.
        extra: further fields of the request, e.g. `{seed: 0}`.
        max_wrong: share of answers of no use above which the run ends with an error.
    """

    temperature: float = Field(default=0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    structured: Literal["json_schema", "json_object", "none"] = "json_schema"
    extra: dict[str, Any] = {}
    max_wrong: float = Field(default=0.2, ge=0, le=1)


class VllmConfig(Config):
    """How vLLM runs on the cluster's GPUs (`ray_jobs/tasks/vllm.py`). None of it counts for a fingerprint; the model's name does.

    Attributes:
        source: the model's folder or hub id where it isn't the tagger's `model`.
        workers: engines at once.
        batch: requests of a batch.
        engine: further arguments of the engine, e.g. `{tensor_parallel_size: 2, max_model_len: 8192}`.
        placement: Ray's placement group of an engine's workers, e.g. `{bundle_per_worker: {CPU: 1, GPU: 1}}`.
    """

    source: str | None = None
    workers: int = Field(default=1, ge=1)
    batch: int = Field(default=256, ge=1)
    engine: dict[str, Any] = {}
    placement: dict[str, Any] | None = None


class RulesConfig(Config):
    """Association as InsTag has it: rules X → tag of at least a confidence, out of tag sets in at least `support` samples.

    Attributes:
        support: for 117,000 samples; scaled like alpha, and never below 3.
        confidence: share of the samples with X that have the tag, too.
        longest: tags of a rule, at most.
    """

    support: int = Field(default=40, ge=1)
    confidence: float = Field(default=0.99, gt=0, le=1)
    longest: int = Field(default=3, ge=2)


class TaggerConfig(Config):
    """How texts get tags, and how tags are normalised. Frequencies are for 117,000 samples and scale with the corpus.

    Attributes:
        name: one of `TAGGERS`.
        response_chars: of a response, only so many first characters are tagged.
        alpha: samples that a tag must occur in, at least; scaled, and never below 3.
        max_share: a tag in more than this share of the samples says nothing and is dropped.
        merge: tags whose vectors have at least this cosine to a commoner tag become that tag; null leaves them.
        mutual: two tags whose frequencies are at most this many times their joint frequency become one; null leaves them.
        rules: null, or association rules in the place of `mutual`.
        max_tags: of a sample, at most: its intent and its rarest tags stay.
        model: for `llm`: its name, as the endpoint knows it.
        base_url: for `llm`: of an OpenAI-compatible endpoint, e.g. `http://127.0.0.1:8000/v1`.
        llm: what it is asked for.
        endpoint: how it is asked.
        budget: of all requests for one side's tags, over all experiments of a storage that ask this model for the same.
        vllm: in the place of `base_url`: vLLM on this cluster's GPUs.
    """

    name: str = "keyphrase"
    response_chars: int = Field(default=500, ge=1)
    alpha: int = Field(default=20, ge=1)
    max_share: float = Field(default=0.05, gt=0, le=1)
    merge: float | None = Field(default=0.9, gt=0, le=1)
    mutual: float | None = Field(default=1.02, ge=1)
    rules: RulesConfig | None = None
    max_tags: int = Field(default=6, ge=1)
    model: str | None = None
    base_url: str | None = None
    llm: LlmConfig = LlmConfig()
    endpoint: EndpointConfig = EndpointConfig()
    budget: BudgetConfig = BudgetConfig()
    vllm: VllmConfig | None = None

    @model_validator(mode="after")
    def _known(self) -> TaggerConfig:
        if self.name not in TAGGERS:
            raise ValueError(f"unknown tagger {self.name!r}{near_matches(self.name, TAGGERS)}")
        if self.name != "llm":
            defaults = {name: type(self).model_fields[name].default for name in sorted({"model", "llm", *_TRANSPORT})}
            if given := [name for name, default in defaults.items() if getattr(self, name) != default]:
                raise ValueError(f"tagger {self.name} has no {given[0]}: that is for tagger llm")
            return self
        if not self.model:
            raise ValueError("tagger llm needs model: the name that the endpoint knows it by")
        if (self.base_url is None) == (self.vllm is None):
            raise ValueError("tagger llm needs one of base_url (an OpenAI-compatible endpoint) and vllm ({} takes this cluster's GPUs)")
        check_transport("tagger llm", self.base_url, extra=self.llm.extra)
        if self.vllm is not None:
            check_transport("tagger llm", None, **{"vllm.engine": self.vllm.engine})
            if self.endpoint.ask_again:
                raise ValueError("endpoint.ask_again is for an endpoint: vllm answers each request once")
        return self

    def settings(self) -> dict[str, Any]:
        """Return what changes bytes beside the tagger's own identity: nothing about where and how fast a model is asked."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"model", "llm", *_TRANSPORT})

    def threshold(self, n: int) -> int:
        """Return the lowest frequency of a tag in a corpus of n samples."""
        return scaled(self.alpha, n)


def scaled(frequency: int, n: int) -> int:
    """Return a frequency that is meant for 117,000 samples for n of them; never below 3."""
    return max(3, round(frequency * n / 117_000))


class Tagger(Protocol):
    """What every tagger is. One that can go wrong also has `outcomes`: counts of what its last call met."""

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Return each text's raw tags, each once, the most telling first."""

    @staticmethod
    def identity(config: TaggerConfig) -> dict[str, Any]:
        """Return what decides the raw tags beside the text: names, versions, prompts."""


def tagger_class(config: TaggerConfig) -> Any:
    """Return the class that a config names."""
    return lookup(TAGGERS, config.name, "tagger")


def load_tagger(config: TaggerConfig, side: str, storage: Storage | None = None) -> Tagger:
    """Return the tagger that a config names, loaded for a side; what it pays for is kept in the storage."""
    return tagger_class(config)(config, side, storage)
