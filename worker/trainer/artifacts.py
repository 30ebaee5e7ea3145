"""What a run leaves in OUT/: adapter/, merged/ where asked for, manifest.json and proof.json."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors", "numpy")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes the tokenizer's files and the exact template that was trained with, in chat_template.jinja, where it has one."""
    tokenizer.save_pretrained(str(folder))
    if tokenizer.chat_template:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def save_merged(model: Any, tokenizer: Any, folder: Path, stop_token_ids: list[int]) -> None:
    """Writes a plain transformers folder whose generation config ends an answer at each of `stop_token_ids` too."""
    config = getattr(model, "generation_config", None)
    if config is not None:  # a reward model, which writes no answers, has none
        own = config.eos_token_id if config.eos_token_id is not None else []
        own = own if isinstance(own, list) else [own]
        config.eos_token_id = own + [token for token in stop_token_ids if token not in own]
    model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)


def declare_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Makes whoever loads the weights in `folder` as their configuration says do so in `dtype`, whatever they are stored in."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"dtype": str(dtype).removeprefix("torch.")})


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n", encoding="utf-8")


def sync(made: Path) -> None:
    """Forces a file, or a folder and all that is below it, to disk."""
    for path in [*made.rglob("*"), made]:
        sync_entry(path)


def sync_entry(path: Path) -> None:
    """Forces one file, or the names that one folder holds, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def made_with(dtype: torch.dtype, compute: torch.dtype, attention: str) -> dict[str, Any]:
    """What decides that the same spec gives the same bits: the libraries, the device, the threads, the precisions, the
    attention."""
    return library_versions() | hardware(dtype, compute) | {"attention": attention}


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def hardware(dtype: torch.dtype, compute: torch.dtype) -> dict[str, Any]:
    """The device, the number of threads, the precisions."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor_name(),
        "threads": torch.get_num_threads(),
        "base_dtype": str(dtype).removeprefix("torch."),
        "compute_dtype": str(compute).removeprefix("torch."),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
