"""The base model as it is read from a folder, and the precision that this machine trains in."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from worker.trainer.failures import unreadable_model


def load_model(folder: str, dtype: torch.dtype | str, own_code: bool) -> Any:
    """The base model on the CPU, from safetensors only; `dtype` "auto" is the one that its files are in, `own_code` lets
    the model's code run."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=own_code
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise unreadable_model(folder, "weights", error) from error


def own_dtype(folder: str, own_code: bool) -> torch.dtype:
    """The dtype that the base model's files are in, by its configuration."""
    dtype = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=own_code).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def training_dtype() -> torch.dtype | str:
    """What the base weights are loaded in for training: their own dtype, or fp32 where bfloat16 would be slow."""
    return "auto" if computes_bf16() else torch.float32


def computes_bf16() -> bool:
    """Whether matrix products in bfloat16 are faster here than in fp32: GPUs that know it, CPUs with AMX."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 where that is faster; what is sensitive stays in fp32."""
    return torch.autocast(device.type, torch.bfloat16) if computes_bf16() else nullcontext()


def accepts(model: torch.nn.Module, argument: str) -> bool:
    """Whether the forward of a model, or of the model inside a PEFT model, names this argument."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    return argument in inspect.signature(inner.forward).parameters
