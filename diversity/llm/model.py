"""A language model that is asked: its name, where it is, and how it draws. Whoever asks one composes this into its configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from diversity.config import Config
from diversity.llm.asking import check_transport
from diversity.llm.endpoint import EndpointConfig


class ServeConfig(Config):
    """A server that the job starts for the model and ends with itself. None of it changes what is asked, and none is a key.

    Attributes:
        engine: `vllm serve` on GPUs, or `transformers serve`, which has neither log-probabilities nor schemas, on what there is.
        source: the model's folder or hub id, where it isn't the model's name.
        gpus: that it holds; of vLLM, also its tensor parallel size.
        cpus: that it holds.
        arguments: further flags of the server, e.g. `{max_model_len: 16384, quantization: fp8}`.
        wait_s: seconds until it must answer.
    """

    engine: Literal["vllm", "transformers"] = "vllm"
    source: str | None = None
    gpus: int = Field(default=1, ge=0)
    cpus: float = Field(default=1, gt=0)
    arguments: dict[str, Any] = {}
    wait_s: float = Field(default=1200, gt=0)


class ModelConfig(Config):
    """A model behind an OpenAI-compatible endpoint, and how it is asked.

    Attributes:
        model: its name, as the endpoint knows it.
        base_url: of the endpoint, e.g. `http://127.0.0.1:8000/v1`. Its key comes from the environment.
        serve: in the place of `base_url`: a server that the job starts.
        temperature: of its sampling; 0 takes the likeliest token.
        top_p: the share of probability that is drawn from; null leaves it to the endpoint.
        max_tokens: of an answer.
        extra: further fields of the request, e.g. `{seed: 0}`.
        endpoint: how it is asked.
    """

    model: str = Field(min_length=1)
    base_url: str | None = None
    serve: ServeConfig | None = None
    temperature: float = Field(default=0, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int = Field(default=1024, ge=1)
    extra: dict[str, Any] = {}
    endpoint: EndpointConfig = EndpointConfig()

    @model_validator(mode="after")
    def _reached(self) -> ModelConfig:
        check_transport(self.model, self.base_url, extra=self.extra)
        if self.serve is not None:
            check_transport(self.model, None, **{"serve.arguments": self.serve.arguments})
        return self

    def parameters(self) -> dict[str, Any]:
        """Return what every request says beside its messages: the model and its sampling. It decides answers, whoever serves them."""
        drawn = {} if self.top_p is None else {"top_p": self.top_p}
        return {"model": self.model, "temperature": self.temperature, **drawn, "max_tokens": self.max_tokens, **self.extra}
