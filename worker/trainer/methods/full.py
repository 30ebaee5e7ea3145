"""All weights are trained, in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from worker.trainer.base import Base, load_model
from worker.trainer.stages import Stage

KIND = "merged"


def load_base(base: Base, config: object) -> Any:
    """In fp32, whatever its files are in: small updates would be rounded away."""
    return load_model(base, torch.float32)


def prepare(model: Any, config: object) -> Any:
    """Every weight is trained."""
    return model.requires_grad_(True)


def optimizer(model: Any, config: object, options: dict[str, Any]) -> None:
    """The loop's own."""


def of_stage(stage: Stage) -> Stage:
    """The stage as it is."""
    return stage


def save(model: Any, folder: Path, base_name: str) -> None:
    """Writes the weights, in the precision that they have, as plain transformers loads them."""
    model.save_pretrained(str(folder))


def load(model: Any, folder: Path) -> None:
    """Puts weights in the place of the model's."""
    weights: dict[str, torch.Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            weights |= load_file(path)
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} cannot be read: {error}") from error
    try:
        missing, foreign = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    tied = {id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False) if name in weights}
    lost = [name for name, parameter in model.named_parameters() if name in missing and id(parameter) not in tied]
    if lost or foreign:
        raise ValueError(f"the weights in {folder} are another model's: {[*lost, *foreign][:3]}")
