"""The precision that a run computes in: the one that it asks for, or the one that this machine is quick in."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from app.jobs.hyperparameters import Precision
from worker.trainer.failures import Failure

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# Of this process, which trains one job.
_asked: Precision = "auto"
_may_scale = True


def compute_in(asked: Precision, *, may_scale: bool = True) -> None:
    """Set the precision of this process. Without `may_scale`, "auto" is never fp16, which needs its gradients scaled.

    Raises `Failure` for a precision that this machine cannot compute in.
    """
    global _asked, _may_scale
    if asked == "fp16" and not computes_fp16():
        raise Failure(
            "trainer_error",
            "hyperparameters.precision: 'fp16' is computed on GPUs only, and this worker has none.",
            "Use 'bf16', 'fp32' or 'auto', or a worker with a GPU (resources.gpus 1).",
        )
    _asked, _may_scale = asked, may_scale


def compute_dtype() -> torch.dtype:
    """The dtype of matrix products, and of frozen weights. bfloat16 and fp16 go by autocast, which keeps sensitive operations
    in fp32. "auto" is bfloat16 where the hardware has it, fp16 on older GPUs (V100, T4), and fp32 on other CPUs."""
    if _asked != "auto":
        return _DTYPES[_asked]
    if computes_bf16():
        return torch.bfloat16
    return torch.float16 if computes_fp16() and _may_scale else torch.float32


def computes_bf16() -> bool:
    """Whether matrix products in bfloat16 are faster here than in fp32: GPUs that know it, CPUs with AMX or AVX512-BF16."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def computes_fp16() -> bool:
    """Whether fp16 is of use here: CPUs are slow in it."""
    return torch.cuda.is_available()


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """The run's precision, on this device."""
    dtype = compute_dtype()
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


def scale_gradients(accelerator: Any) -> None:
    """In fp16 the loss is scaled before its backward pass, so that small gradients do not become zero, and a step whose
    gradients overflow then is left out, and the scale halved (Micikevicius et al., 2017, arXiv:1710.03740). To be called before
    `accelerator` gets the optimiser; the Trainer keeps the scale in its checkpoints."""
    if compute_dtype() is torch.float16:
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type)


def unscale_gradients(accelerator: Any, optimizer: Any) -> None:
    """Gives the gradients of a step their own size, and finds out whether they overflowed. `accelerator` does so by itself only
    where its own autocast is used."""
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(optimizer.optimizer)


def was_left_out(accelerator: Any, grad_norm: float) -> bool:
    """Whether the step just made changed nothing because its gradients overflowed, and a smaller scale is there to be tried."""
    scaler = accelerator.scaler
    return scaler is not None and not math.isfinite(grad_norm) and scaler.get_scale() >= 1.0
