"""The base model as it is read from a folder."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from worker.trainer.failures import unreadable_model

# What a stage makes → transformers' class of it.
_CLASSES = {"language model": AutoModelForCausalLM, "reward model": AutoModelForSequenceClassification}


@dataclass(frozen=True)
class Base:
    """A base model's folder, and what of it a run loads; `own_code` lets the model's code run; `adapter` is the folder of an
    adapter that is folded into its weights first."""

    folder: str
    own_code: bool = False
    makes: Literal["language model", "reward model"] = "language model"
    pad_id: int | None = None
    adapter: str | None = None


def load_model(base: Base, dtype: torch.dtype | str, **options: Any) -> Any:
    """The base model on the CPU, from safetensors only; `dtype` "auto" is the one that its files are in.

    A reward model is the base without its output layer and, in its place, one new score, whose weights come from torch's
    global generator. Raises `Failure` (`model_unreadable`).
    """
    if base.adapter:
        return _with_adapter(base, base.adapter, dtype)
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


def fold(model: Any, adapter: str) -> Any:
    """A plain model: `model` with the adapter of this folder added to its weights. Raises what reading it raises."""
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _with_adapter(base: Base, adapter: str, dtype: torch.dtype | str) -> Any:
    """As though the fine-tune had been stored merged: folded in fp32, and rounded to the base's own precision."""
    plain = load_model(replace(base, adapter=None, makes="language model"), torch.float32)
    try:
        whole = fold(plain, adapter).to(own_dtype(base))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unreadable_model(adapter, "adapter", error) from error
    if dtype != "auto":
        whole = whole.to(dtype)
    if base.makes == "language model":
        return whole
    config = AutoConfig.from_pretrained(base.folder, local_files_only=True, num_labels=1, pad_token_id=base.pad_id)
    scores = _CLASSES[base.makes].from_config(config, dtype=whole.dtype)
    scores.base_model.load_state_dict(whole.base_model.state_dict())
    return scores


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
    """The model on the GPU that it is trained on, where there is one. Its weights were made on the CPU, so they are the same."""
    on_cpu = next(model.parameters()).device.type == "cpu"
    return model.to("cuda") if torch.cuda.is_available() and on_cpu else model


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
    return argument in inspect.signature(inner_of(model).forward).parameters


def inner_of(model: Any) -> Any:
    """The model itself, also of a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
