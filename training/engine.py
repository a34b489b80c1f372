"""A model folder becomes a DeepSpeed engine that returns the summed loss of packed rows."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from diversity.config import UserError, near_matches
from training.attention import use_packed_attention
from training.config import LoraConfig, Precision, SftConfig
from training.forward import figure, logits_at, position_table
from training.kernels import cheap_parts_again, use_fused_kernels
from training.loss import has_plain_head, linear_cross_entropy
from training.ranks import group_backend
from training.zero import ModelShape, deepspeed_config, parameters_in_bf16

OFFLOAD_THREADS = 4  # of a rank, below which an offloaded AdamW is slower than all else
LOGIT_ROWS = 1024  # positions whose logits are held in fp32 at once

logger = logging.getLogger("training.sft")


class RowLoss(nn.Module):
    """A causal language model whose output is the sum of the cross-entropy over a row's labelled tokens.

    The output layer sees the states that predict a label and no others: prompts cost none of it. Where a model's logits are its output
    layer's and nothing else, they never exist as a whole (`training.loss`); elsewhere they are turned into fp32 in pieces.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pieces = has_plain_head(model)

    def forward(self, input_ids: torch.Tensor, predicting: torch.Tensor, targets: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return the sum over labelled tokens, () float32.

        Args:
            input_ids: (1, L) int64.
            predicting: (n,) int64, the places whose next token has a label. They come from the host: to find them on a GPU, it would wait.
            targets: (n,) int64, those labels.
            inputs: what else the model takes: position ids, the samples' bounds or the mask.
        """
        model: Any = self.model
        if self.pieces:
            states = model.get_decoder()(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state[0, predicting]
            head = model.get_output_embeddings()
            return linear_cross_entropy(states, head.weight, head.bias, targets)
        logits = logits_at(model, predicting, {"input_ids": input_ids, **inputs})
        if len(targets) <= LOGIT_ROWS:
            return _summed(logits, targets)
        pieces = zip(logits.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        return torch.stack([checkpoint(_summed, *piece, use_reentrant=False) for piece in pieces]).sum()


def _summed(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


def prepare_process(device: str, threads: int | None = None) -> None:
    """Set what must be set before DeepSpeed is imported, and the number of threads of this rank.

    On CPUs DeepSpeed would compile a shared-memory communicator with the first engine, for minutes; gloo does the same work.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    else:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # rows of many lengths leave no gaps then
    if threads:
        torch.set_num_threads(threads)
    import deepspeed.ops
    import transformers
    from deepspeed.utils import logger as told_by_deepspeed

    told_by_deepspeed.setLevel(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def free_memory(device: str, ranks_on_node: int = 1) -> tuple[int, int | None]:
    """Return the bytes that a rank can have on its device, and on its host for what is offloaded (None: the device is the host)."""
    import psutil

    host = psutil.virtual_memory().available // ranks_on_node
    if device == "cuda":
        return torch.cuda.mem_get_info()[0], host
    return host, None


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Have torch.distributed running: as it is already, or as torchrun's environment says, or for this process alone."""
    if torch.distributed.is_initialized():
        yield
        return
    backend = group_backend(device)
    if "WORLD_SIZE" in os.environ and "MASTER_ADDR" in os.environ:
        torch.distributed.init_process_group(backend)
    else:
        os.environ.setdefault("LOCAL_RANK", "0")
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def load_model(folder: Path, sft: SftConfig, precision: Precision, *, seed: int) -> nn.Module:
    """Return the folder's causal language model, ready to be trained, on the CPU.

    With ZeRO stage 3 it comes up in parts: rank 0 alone reads the weights, layer by layer, and each rank keeps its share of them.

    Raises:
        UserError: transformers can't open it as a causal language model.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if parameters_in_bf16(sft.zero, precision) else torch.float32
    with _partitioned(sft, precision):
        try:
            open_folder: Any = AutoModelForCausalLM.from_pretrained
            model, told = open_folder(folder, dtype=dtype, output_loading_info=True)
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder} can't be opened as a causal language model: {' '.join(str(error).split())[:300]}") from None
    if sft.zero.number != 3 or torch.distributed.get_rank() == 0:  # with stage 3 the others read nothing
        _refuse_other_weights(folder, told)
    use_packed_attention(model)
    if sft.kernels == "fused":
        use_fused_kernels(model)
    if sft.gradient_checkpointing:
        options: dict[str, Any] = {"use_reentrant": False}
        if sft.gradient_checkpointing == "selective":
            options["context_fn"] = cheap_parts_again
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if sft.lora is not None:
        if sft.gradient_checkpointing:
            model.enable_input_require_grads()
        model = with_adapters(model, sft.lora, seed=seed)
    return model.train()


def _refuse_other_weights(folder: Path, told: Any) -> None:
    """Refuse a folder whose weights are not the model's: what is missing would begin at random, what is unknown would be dropped."""
    faults = [("lacks", told["missing_keys"]), ("has, and the model does not know,", told["unexpected_keys"])]
    faults.append(("has in another shape", {str(one[0]) for one in told.get("mismatched_keys", ())}))
    for what, names in faults:
        if names:
            shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            raise UserError(f"{folder} {what} {len(names)} of the model's weights: {shown}")


@contextlib.contextmanager
def _partitioned(sft: SftConfig, precision: Precision) -> Iterator[None]:
    """Have transformers spread a model over the ranks while it is made, where ZeRO's stage is 3."""
    if sft.zero.number != 3:
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig

    asked = HfDeepSpeedConfig(deepspeed_config(sft, precision))  # transformers asks for it as long as it lives
    yield
    del asked


def with_adapters(model: Any, lora: LoraConfig, *, seed: int) -> Any:
    """Return the model with low-rank adapters, the only parameters that learn; their start follows from the seed."""
    import peft

    torch.manual_seed(seed)
    named = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    _refuse_unknown_targets(model, [] if isinstance(named, str) else named)
    chosen: dict[str, Any] = {"r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": named}
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**chosen, task_type="CAUSAL_LM"))
    except ValueError as error:
        raise UserError(f"sft.lora can't be used with this model: {' '.join(str(error).split())[:300]}") from None
    _refuse_shared_targets(adapted)
    return adapted


def _refuse_unknown_targets(model: Any, targets: list[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
            raise UserError(f"sft.lora.targets: this model has no layer {target!r}{near_matches(target, linear)}")


def _refuse_shared_targets(model: Any) -> None:
    """Refuse adapters on a weight that two layers share: merged, they would change the other layer too."""
    owners: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(weight := module._parameters.get("weight"), nn.Parameter):
            owners.setdefault(id(weight), set()).add(name.removesuffix(".base_layer"))
    for name, module in model.named_modules():
        layer = getattr(module, "base_layer", None)
        weight = getattr(layer, "weight", None)
        if weight is not None and len(owners.get(id(weight), ())) > 1:
            raise UserError(
                f"sft.lora.targets: {name.rsplit('.', 1)[-1]} shares its weight with another layer (tie_word_embeddings), which a merged "
                "adapter would change too: leave it out"
            )


def shape_of(folder: Path, sft: SftConfig) -> ModelShape:
    """Return what memory and arithmetic of a run depend on, out of the model's config alone: no weight is read.

    Raises:
        UserError: transformers can't make a causal language model of the config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    except Exception as error:  # architectures raise whatever they like
        raise UserError(f"{folder} can't be opened as a causal language model: {' '.join(str(error).split())[:300]}") from None
    config, head = model.config.get_text_config(), model.get_output_embeddings()
    if head is None:
        raise UserError(f"{folder} can't be trained: {type(model).__name__} has no output layer that transformers knows of")
    for name in ("hidden_size", "num_hidden_layers", "vocab_size"):
        if not figure(config, name, 0):
            raise UserError(f"{folder} can't be trained: the configuration of {config.model_type} says no {name}")
    outside = {id(model.get_input_embeddings().weight), id(head.weight)}
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2 and id(p) not in outside)
    whole_logits, positions = not has_plain_head(model), position_table(model)
    if sft.lora is not None:
        with torch.device("meta"):
            model = with_adapters(model, sft.lora, seed=0)
    heads = figure(config, "num_attention_heads", 1)
    width = figure(config, "head_dim", config.hidden_size // heads)
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=figure(config, "intermediate_size", 4 * config.hidden_size),
        vocabulary=config.vocab_size,
        block_weights=matrices,
        attention_width=heads * width,
        key_width=figure(config, "num_key_value_heads", heads) * width,
        whole_logits=whole_logits,
        positions=positions,
    )


def check_offload(sft: SftConfig, device: str) -> None:
    """Look for what offloading from a GPU needs on this host, before anything is loaded.

    DeepSpeed compiles its AdamW for the host with the first run of a machine, and runs it with this rank's threads.

    Raises:
        UserError: a compiler or ninja is missing, or memory can't be pinned.
    """
    if device != "cuda" or not (sft.zero.offload_optimizer or sft.zero.offload_parameters):
        return
    if sft.zero.offload_optimizer:
        missing = [name for name, found in (("g++", shutil.which("g++")), ("ninja", _has_ninja())) if not found]
        if missing:
            raise UserError(
                f"sft.zero.offload_optimizer compiles AdamW for the host, and {' and '.join(missing)} can't be found on this node"
            )
        if torch.get_num_threads() < OFFLOAD_THREADS:
            logger.warning(
                "AdamW runs on the host with %d threads a rank; GPUs will wait for it: raise resources.cpus_per_rank (or --threads)",
                torch.get_num_threads(),
            )
    try:
        torch.empty(2**20, dtype=torch.uint8).pin_memory()
    except RuntimeError as error:
        raise UserError(f"offloading needs pinned memory, which this node refuses: {' '.join(str(error).split())[:200]}") from None


def _has_ninja() -> bool:
    return importlib.util.find_spec("ninja") is not None or shutil.which("ninja") is not None


def adamw(model: nn.Module, sft: SftConfig, device: str) -> torch.optim.Optimizer:
    """Return AdamW over the parameters that learn; weight decay is for matrices, not for norms and biases."""
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [len(getattr(p, "ds_shape", p.shape)) >= 2 for p in learning]  # a rank's part of a parameter is flat
    groups = [
        {"params": [p for p, matrix in zip(learning, matrices, strict=True) if matrix], "weight_decay": sft.weight_decay},
        {"params": [p for p, matrix in zip(learning, matrices, strict=True) if not matrix], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if sft.zero.offload_optimizer and device == "cuda":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=sft.lr, betas=sft.betas, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=sft.lr, betas=sft.betas, fused=True)


def build_engine(model: nn.Module, sft: SftConfig, precision: Precision, device: str, *, universal: bool = False) -> Any:
    """Return the DeepSpeed engine around `RowLoss(model)`; torch.distributed runs already.

    Args:
        model: of `load_model`.
        sft: the run's configuration.
        precision: resolved.
        device: `cpu` or `cuda`.
        universal: whether the state that it will load comes from another number of ranks.
    """
    import deepspeed

    module = RowLoss(model)
    if device == "cuda":
        module.to(torch.device("cuda", torch.cuda.current_device()))
    config = deepspeed_config(sft, precision, device)
    if universal and sft.zero.number:
        config["checkpoint"] = {"load_universal": True}
    engine, *_ = deepspeed.initialize(model=module, optimizer=adamw(module, sft, device), config=config, dist_init_required=False)
    if not sft.zero.number and sft.world_size == 1:  # it would copy all gradients into one tensor and back to reduce them over nobody
        engine.enable_backward_allreduce = False
    return engine
