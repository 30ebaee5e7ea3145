"""A machine whose memory is small: there is none here whose end could be met without harm."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worker.trainer.stages import texts


def limit(patch: pytest.MonkeyPatch, tokens: int, *, only_training: bool = False) -> None:
    """From now on a forward over more padded tokens fails at its end, as where PyTorch finds no memory on a CPU. What has
    drawn random numbers, and the gradients of the micro-batches before it, are there by then."""
    losses = texts.losses

    def losses_while_they_fit(model: torch.nn.Module, batch: dict[str, Any], *further: Any) -> torch.Tensor:
        found = losses(model, batch, *further)
        if batch["input_ids"].numel() > tokens and (torch.is_grad_enabled() or not only_training):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory")
        return found

    patch.setattr(texts, "losses", losses_while_they_fit)
