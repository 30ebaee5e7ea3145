"""Low-rank adapters (Hu et al., 2021, arXiv:2106.09685), as PEFT implements them."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora.layer import Linear, LoraVariant
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.jobs.methods import Lora, Qlora
from worker.trainer.base import Base, load_model
from worker.trainer.methods.full import of_stage
from worker.trainer.precision import compute_dtype

__all__ = ["KIND", "load", "load_base", "of_stage", "optimizer", "prepare", "save"]

KIND = "adapter"

_ADAPTER = "default"  # PEFT's name for the only adapter
_WEIGHTS = "adapter_model.safetensors"


def load_base(base: Base, config: Lora) -> Any:
    """In the precision that is trained in."""
    return load_model(base, compute_dtype())


def prepare(model: Any, config: Lora | Qlora) -> Any:
    """Adds adapters of fp32 weights to the linear layers, all but the head, or to those whose names are listed. Of a reward
    model the score is trained too.

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
    is_reward_model = hasattr(model, "score")
    peft_config = LoraConfig(
        task_type=TaskType.SEQ_CLS if is_reward_model else TaskType.CAUSAL_LM,
        r=config.rank,
        lora_alpha=int(config.alpha) if config.alpha.is_integer() else config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        use_rslora=config.variant == "rslora",
        use_dora=config.variant == "dora",
        init_lora_weights="pissa" if config.variant == "pissa" else True,
    )
    peft_model = get_peft_model(model, peft_config, adapter_name=_ADAPTER, autocast_adapter_dtype=True)
    for module in peft_model.modules():
        if type(module) is Linear and config.variant != "dora":
            module.lora_variant[_ADAPTER] = _FewerPasses
            # PEFT would copy the layer's input to fp32, and autocast that back to 16 bits: two copies for nothing.
            module.cast_input_dtype_enabled = compute_dtype() is torch.float32
    for weight in peft_model.parameters():
        if weight.requires_grad:  # a score is in the base's precision until here
            weight.data = weight.data.float()
    if config.variant == "pissa":
        peft_model.began_with = {name: weight.detach().cpu().clone() for name, weight in _weights(peft_model).items()}
    return peft_model


def optimizer(model: Any, config: Lora | Qlora, options: dict[str, Any]) -> torch.optim.Optimizer | None:
    """With `plus` LoRA+'s (Hayou et al., 2024, arXiv:2402.12354), as PEFT makes its groups; else the loop's own."""
    if config.plus is None:
        return None
    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        loraplus_lr_ratio=config.plus,
        loraplus_weight_decay=options["weight_decay"],  # its groups take no notice of AdamW's
        **options,
    )
    return made


def save(model: Any, folder: Path, base_name: str) -> None:
    """Writes adapter_model.safetensors and adapter_config.json. Training may go on afterwards."""
    config = copy(model.peft_config[_ADAPTER])
    config.base_model_name_or_path = base_name
    config.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().cpu() for name, weight in _weights(model).items()}
    if config.init_lora_weights == "pissa":
        weights = _as_plain(weights, model.began_with)
        config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, 2 * config.lora_alpha, True
    contiguous = {name: weight.contiguous() for name, weight in weights.items()}
    save_file(contiguous, folder / _WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def load(model: Any, folder: Path) -> None:
    """Puts the weights of an adapter in the place of the prepared ones. They must be of the same layers and shapes."""
    try:
        weights = load_file(folder / _WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{_WEIGHTS} cannot be read: {error}") from error
    if model.peft_config[_ADAPTER].init_lora_weights == "pissa":
        weights = {name: _first_half(name, weight) for name, weight in weights.items()}
    if _shapes(weights) != _shapes(_weights(model)):
        raise ValueError(f"{_WEIGHTS} has other layers or another rank than are trained")
    set_peft_model_state_dict(model, weights, adapter_name=_ADAPTER)


def _as_plain(now: dict[str, torch.Tensor], began: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PiSSA takes the principal part B0 A0 out of the weight, so what was learned is B A - B0 A0: an adapter of twice the
    rank on the weight as it was."""
    plain = dict(now)  # a reward model's score is whole
    for name, weight in now.items():
        if ".lora_A." in name:
            plain[name] = torch.cat([weight, began[name]])
        elif ".lora_B." in name:
            plain[name] = torch.cat([weight, -began[name]], dim=1)
    return plain


def _first_half(name: str, weight: torch.Tensor) -> torch.Tensor:
    """What `_as_plain` was given as `now`."""
    if ".lora_A." in name:
        return weight.chunk(2)[0]
    return weight.chunk(2, dim=1)[0] if ".lora_B." in name else weight


def _weights(model: Any) -> dict[str, torch.Tensor]:
    # Not PeftModel.save_pretrained: it writes a model card and asks the hub about the base's vocabulary.
    weights: dict[str, torch.Tensor] = get_peft_model_state_dict(
        model, adapter_name=_ADAPTER, save_embedding_layers=False
    )
    return weights


def _shapes(weights: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: weight.shape for name, weight in weights.items()}


class _FewerPasses(LoraVariant):  # type: ignore[misc]  # peft is not type-checked
    """PEFT's forward of a LoRA layer with the low-rank product added to the layer's output where it lies.

    The same function with fewer passes over tensors of the layer's size and fewer operations to record, which cost a small
    model on a CPU a fifth of its step.
    """

    @staticmethod
    def forward(
        module: Any, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: object
    ) -> torch.Tensor:
        return _add_low_rank(
            result,
            module.lora_dropout[active_adapter](x),
            module.lora_A[active_adapter].weight,
            module.lora_B[active_adapter].weight,
            module.scaling[active_adapter],
        )


class _AddLowRank(torch.autograd.Function):
    """result + scale · (x Aᵀ) Bᵀ, written over `result` [..., out]; x [..., in], A [rank, in], B [out, rank]."""

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float
    ) -> torch.Tensor:
        x = x.to(result.dtype)
        a, b = down.to(result.dtype), (up * scale).to(result.dtype)
        low = x.flatten(0, -2) @ a.t()
        result.view(-1, result.shape[-1]).addmm_(low, b.t())  # a view or an error: in a copy the sum would be lost
        ctx.save_for_backward(x, low, a, b)
        ctx.scale = scale
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, a, b = ctx.saved_tensors
        flat = gradient.flatten(0, -2)
        of_low = flat @ b
        of_x = (of_low @ a).view(x.shape) if ctx.needs_input_grad[1] else None
        return gradient, of_x, of_low.t() @ x.flatten(0, -2), (low.t() @ flat).t() * ctx.scale, None


_add_low_rank: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor] = (
    _AddLowRank.apply
)
