"""The last block's gated layer, computed only where something is read of it: nothing after it looks at other tokens."""

from __future__ import annotations

from typing import Any

import torch

from app.jobs.combinations import TRIED_FAMILIES
from worker.trainer.base import blocks_of, inner_of
from worker.trainer.depths import has_routers


def narrow(model: Any) -> None:
    """From now on passes in training compute the last block's gated layer in the columns that `read_at` was told alone: of
    short answers to long prompts few. Does nothing to families that it was not tried on."""
    inner = inner_of(model)
    # Neither code of a model's own nor the class that a sharded model gets.
    is_known = inner.config.model_type in TRIED_FAMILIES and type(inner).__module__.startswith("transformers.")
    if is_known and not has_routers(inner.config):
        inner.last_read = _Read()
        layer: Any = blocks_of(inner)[-1].mlp
        layer.register_forward_pre_hook(inner.last_read.take)
        layer.register_forward_hook(inner.last_read.put_back)


def read_at(model: Any, columns: torch.Tensor | None) -> None:
    """Of the passes to come nothing is read but these columns [K]; None: all is."""
    if read := getattr(inner_of(model), "last_read", None):
        read.columns = columns


class _Read:
    columns: torch.Tensor | None = None
    width = 0

    def take(self, layer: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        """[B, T, hidden] → [B, K, hidden]"""
        columns = self._of(layer)
        if columns is None:
            return None
        self.width = inputs[0].shape[1]
        return (inputs[0].index_select(1, columns),)

    def put_back(self, layer: Any, inputs: object, made: torch.Tensor) -> torch.Tensor | None:
        """[B, K, hidden] → [B, T, hidden], zero in the other columns."""
        columns = self._of(layer)
        if columns is None:
            return None
        return made.new_zeros(len(made), self.width, made.shape[-1]).index_copy(1, columns, made)

    def _of(self, layer: Any) -> torch.Tensor | None:
        return self.columns if layer.training else None  # what a model says is asked for otherwise than in training
