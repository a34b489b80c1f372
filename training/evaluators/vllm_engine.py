"""Answers by vLLM: every rank has an engine of its own, on its own device, of the model as it was saved.

The only file of this package that names vLLM, which is no dependency: it is imported where an answer is wanted. The engine runs in a
process of its own; the model that was trained goes to the memory of the host meanwhile, and what is free when vLLM starts is what it
may take.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diversity.artifact import digest
from diversity.config import ConfigError, UserError
from training.evaluators.generate import BATCH_TOKENS, Answer, GenerateConfig, Prompt, answer_of
from training.memory import SetAside

if TYPE_CHECKING:
    from training.evaluators import Subject

SHARE_OF_FREE_MEMORY = 0.9
PROCESS_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def require_vllm() -> None:
    """Ask for the package before a run trains, not when it is to be scored.

    Raises:
        UserError: it is missing.
    """
    if importlib.util.find_spec("vllm") is None:
        raise UserError("generate.engine: vllm needs the package vllm on the nodes that train: pip install 'sft-diversity[vllm]'")


class VllmEngine:
    """The saved model in vLLM, which starts with the first batch.

    Raises:
        ValueError: the subject has no folder.
    """

    together = False

    def __init__(self, subject: Subject, config: GenerateConfig) -> None:
        if subject.folder is None:
            raise ValueError("vLLM opens a saved model, and this subject has no folder")
        self.folder, self.device, self.dtype = subject.folder, subject.device, subject.model.dtype
        self.ends, self.config = list(subject.encoder.ends), config
        self.model = subject.model
        self._aside: SetAside | None = None
        kinds = BATCH_TOKENS["vllm"]
        self.batch_tokens = kinds.get(str(subject.device).partition(":")[0], kinds["cpu"])
        self._llm: Any = None

    def __call__(self, batch: Sequence[Prompt], name: str) -> list[Answer]:
        """Return each prompt's answer. Draws are each prompt's own, so that the batch and its name do not count.

        Raises:
            ConfigError: vLLM does not take the options.
        """
        from vllm import SamplingParams

        llm, config = self._started(), self.config
        shared = {
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "stop_token_ids": self.ends,
            "ignore_eos": True,  # the end of a turn ends an answer, and nothing else
            "detokenize": False,
        }
        seeds = [int(digest([config.seed, prompt.sample_id])[:8], 16) if config.temperature else None for prompt in batch]
        found = llm.generate(
            [{"prompt_token_ids": prompt.ids.tolist()} for prompt in batch],
            [SamplingParams(**shared, seed=seed) for seed in seeds],
            use_tqdm=False,
        )
        return [answer_of(request.outputs[0].token_ids, self.ends) for request in found]

    def close(self) -> None:
        """End vLLM's process, if it was started, and have the model back on the device."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
        if self._aside is not None:
            self._aside.back()
            self._aside = None

    def _started(self) -> Any:
        if self._llm is None:
            from vllm import LLM

            self._aside = self._aside or SetAside(self.model)  # what it holds of the device is vLLM's now
            options = {
                "model": str(self.folder),
                "generation_config": "vllm",  # not the folder's: what is drawn is this evaluator's configuration alone
                "max_model_len": self.config.max_prompt_tokens + self.config.max_new_tokens,
                **_precision_and_memory(self.device, self.dtype),
                **self.config.vllm,
            }
            with _seeing_only(self.device):
                try:
                    self._llm = LLM(**options)
                except (TypeError, ValueError) as error:
                    raise ConfigError(f"generate.vllm: {' '.join(str(error).split())}") from error
        return self._llm


def _precision_and_memory(device: Any, dtype: Any) -> dict[str, Any]:
    """Return the precision that other evaluators score in, and the share of the device's memory that is free."""
    import torch

    kind = torch.device(device).type
    used = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    options: dict[str, Any] = {"dtype": str(used).removeprefix("torch.")}
    if kind == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        options["gpu_memory_utilization"] = round(SHARE_OF_FREE_MEMORY * free / total, 3)
    return options


@contextmanager
def _seeing_only(device: Any) -> Iterator[None]:
    """Have processes that start here see the one GPU of this rank, and nothing of the ranks' process group."""
    import torch

    place = torch.device(device)
    before = {name: os.environ.pop(name, None) for name in PROCESS_GROUP}
    if place.type == "cuda":
        before["CUDA_VISIBLE_DEVICES"] = visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        number = place.index if place.index is not None else torch.cuda.current_device()
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
