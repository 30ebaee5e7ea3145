"""The base model as it is read from a folder, and how it attends."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig
from transformers.utils import is_flash_attn_2_available

from app.jobs.estimate import PLAIN_ATTENTION_BELOW
from worker.trainer.failures import unreadable_model
from worker.trainer.precision import compute_dtype

# What a stage makes → transformers' class of it.
_CLASSES = {"language model": AutoModelForCausalLM, "reward model": AutoModelForSequenceClassification}


@dataclass(frozen=True)
class Base:
    """A base model's folder, and what of it a run loads; `own_code` lets the model's code run."""

    folder: str
    own_code: bool = False
    makes: Literal["language model", "reward model"] = "language model"
    pad_id: int | None = None


def load_model(base: Base, dtype: torch.dtype | str, **options: Any) -> Any:
    """The base model on the CPU, from safetensors only; `dtype` "auto" is the one that its files are in.

    A reward model is the base without its output layer and, in its place, one new score, whose weights come from torch's
    global generator. Raises `Failure` (`model_unreadable`).
    """
    if base.makes == "reward model":
        options |= {"num_labels": 1, "pad_token_id": base.pad_id}
    try:
        return _CLASSES[base.makes].from_pretrained(
            base.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=base.own_code,
            **options,
        )
    except Exception as error:
        raise unreadable_model(base.folder, "weights", error) from error


def random_model(base: Base) -> Any:
    """A model of the base's architecture in fp32, its weights from torch's global generator."""
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.own_code)
    made = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=base.own_code)
    if (Path(base.folder) / "generation_config.json").is_file():
        made.generation_config = GenerationConfig.from_pretrained(base.folder)
    return made


def own_dtype(base: Base) -> torch.dtype:
    """The dtype that the base model's files are in, by its configuration."""
    dtype = AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=base.own_code).dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def onto_device(model: Any) -> Any:
    """The model on the GPU that it is trained on, where there is one, with the attention that is quick there. Its weights were
    made on the CPU, so they are the same."""
    if not torch.cuda.is_available():
        return model
    on_gpu = model.to("cuda") if next(model.parameters()).device.type == "cpu" else model
    if is_flash_attn_2_available() and takes_flash(on_gpu, torch.cuda.get_device_capability(), compute_dtype()):
        _inner(on_gpu).set_attn_implementation(FLASH)
    return on_gpu


def blocks_of(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The model's blocks, in their order. Raises `ValueError` where they are not found."""
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"method.type: the {count} blocks of {type(model).__name__} are not found")


def accepts(model: torch.nn.Module, argument: str) -> bool:
    """Whether the forward of a model, or of the model inside a PEFT model, names this argument."""
    return argument in inspect.signature(_inner(model).forward).parameters


FLASH = "flash_attention_2"  # transformers' name of the package flash_attn's


def takes_flash(model: torch.nn.Module, capability: tuple[int, int], compute: torch.dtype) -> bool:
    """Whether FlashAttention 2 (Dao, 2023, arXiv:2307.08691) computes this model, in this precision, on a GPU of this compute
    capability: from Ampere on, in 16 bits. Its backward pass adds up in no fixed order, so not where that is asked for."""
    inner = _inner(model)
    return bool(
        capability >= (8, 0)
        and compute in (torch.bfloat16, torch.float16)
        and not torch.are_deterministic_algorithms_enabled()
        and getattr(inner, "_supports_flash_attn", False)
        and inner._can_set_attn_implementation()
        and getattr(inner, "switches_attention", True)
    )


def attention_of(model: torch.nn.Module) -> str:
    """How the model attends, by transformers' name; `sdpa` also where `attend` puts plain attention in its place."""
    return "sdpa" if _switches_attention(model) else str(_inner(model).config._attn_implementation)


def attend(model: torch.nn.Module, width: int) -> None:
    """Makes the model's next forward and backward pass over texts of this width use the attention that is quick in it. It stays,
    since what is computed again in a backward pass must be what was computed; so each forward pass is to say its own."""
    inner = _inner(model)
    if _switches_attention(model):
        # On a CPU the backward pass of torch's fused attention costs short texts more than plain matrix products do: with 4 heads
        # of 64 in bfloat16, both passes took 17 ms at 70 tokens and 24 at 128 where plain ones took 3 and 8.
        wanted = "eager" if inner.device.type == "cpu" and width < PLAIN_ATTENTION_BELOW else "sdpa"
        if inner.config._attn_implementation != wanted:
            inner.set_attn_implementation(wanted)


def _switches_attention(model: torch.nn.Module) -> bool:
    """Whether `attend` does anything, decided when it is first asked."""
    inner = _inner(model)
    if not hasattr(inner, "switches_attention"):
        inner.switches_attention = inner.config._attn_implementation == "sdpa" and inner._can_set_attn_implementation()
    return bool(inner.switches_attention)


def _inner(model: Any) -> Any:
    """The model itself, also of a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
