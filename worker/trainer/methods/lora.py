"""Low-rank adapters (Hu et al., 2021, arXiv:2106.09685), as PEFT implements them."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora.layer import Linear, LoraVariant
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.jobs.spec import Lora
from worker.trainer.base import computes_bf16

_ADAPTER = "default"  # PEFT's name for the only adapter
_WEIGHTS = "adapter_model.safetensors"


def prepare(model: Any, config: Lora) -> Any:
    """Adds adapters of fp32 weights to the linear layers, all but the head, or to those whose names are listed.

    Raises `ValueError` naming the listed names that fit no layer.
    """
    targets = config.target_modules
    if targets != "all-linear":
        modules = [name for name, _ in model.named_modules()]
        # PEFT's rule for a list: a module's whole name, or its last parts. It ignores names that fit nothing as long as
        # one does, and the adapter would be smaller than was asked for.
        unknown = [name for name in targets if not any(m == name or m.endswith(f".{name}") for m in modules)]
        if unknown:
            linear = {
                m.rpartition(".")[2] for m, module in model.named_modules() if isinstance(module, torch.nn.Linear)
            }
            raise ValueError(
                f"method.target_modules: no layer is called {', '.join(unknown)}; there are {sorted(linear)}"
            )
    peft_config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
    )
    peft_model = get_peft_model(model, peft_config, adapter_name=_ADAPTER, autocast_adapter_dtype=True)
    for module in peft_model.modules():
        if type(module) is Linear:
            module.lora_variant[_ADAPTER] = _FewerPasses
            # PEFT would copy the layer's input to fp32, and autocast that back to bf16: two copies for nothing.
            module.cast_input_dtype_enabled = not computes_bf16()
    return peft_model


def save(model: Any, folder: Path, base_name: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json. Training may go on afterwards."""
    config = copy(model.peft_config[_ADAPTER])
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: weight.detach().cpu().contiguous() for name, weight in _weights(model).items()}
    save_file(contiguous, folder / _WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def load(model: Any, folder: Path) -> None:
    """Puts the weights of an adapter in the place of the prepared ones. They must be of the same layers and shapes."""
    try:
        weights = load_file(folder / _WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{_WEIGHTS} cannot be read: {error}") from error
    if _shapes(weights) != _shapes(_weights(model)):
        raise ValueError(f"{_WEIGHTS} has other layers or another rank than are trained")
    set_peft_model_state_dict(model, weights, adapter_name=_ADAPTER)


def merge(base: Any, folder: Path) -> Any:
    """Adds alpha / rank · B A to the weights of a base model in fp32."""
    return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def _weights(model: Any) -> dict[str, torch.Tensor]:
    # Not PeftModel.save_pretrained: it writes a model card and asks the hub about the base's vocabulary.
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, adapter_name=_ADAPTER, save_embedding_layers=False
    )
    return weights


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


class _FewerPasses(LoraVariant):  # type: ignore[misc]  # peft is not type-checked
    """PEFT's forward of a LoRA layer with the scale applied to the low-rank product and the sum done by the matrix product.

    The same function with three passes fewer over tensors of the layer's output size, which cost a small model on a CPU
    a tenth of its step.
    """

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        low_rank = (
            module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)) * module.scaling[active_adapter]
        )
        up = module.lora_B[active_adapter].weight.t()
        return torch.addmm(result.flatten(0, -2), low_rank.flatten(0, -2), up).view(result.shape)
