"""How large micro-batches are: as large as is good for speed, and smaller where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from app.jobs.estimate import MICRO_BATCH_TOKENS
from worker.trainer import ranks
from worker.trainer.determinism import random_states
from worker.trainer.events import Emit
from worker.trainer.failures import of_the_machine
from worker.trainer.sharding import is_sharded

Part = TypeVar("Part")
Result = TypeVar("Result")


def micro_batch_tokens() -> int:
    """Padded tokens of a micro-batch on this machine, while they fit."""
    return MICRO_BATCH_TOKENS["cuda" if torch.cuda.is_available() else "cpu"]


class MicroBatches:
    """A micro-batch of this run has at most `tokens` padded tokens, or is one row. So many of the kernel's kills have
    `halved` that before it began."""

    def __init__(self, tokens: int, emit: Emit, halved: int = 0) -> None:
        self.tokens, self.halved = tokens, halved
        self._emit = emit

    def fit(
        self,
        model: Any,
        what: str,
        rows: int,
        cut: Callable[[int], list[Part]],
        work: Callable[[list[Part]], Result],
    ) -> Result:
        """What `work` makes of the micro-batches into which `cut` puts so many rows, given the tokens of one at most.

        Where memory runs out meanwhile, gradients are dropped, random states are as they were before, `tokens` is halved until
        it makes a difference, a `warning` says so (`what`: in the midst of what), and `work` begins anew. Raises the error where
        each row is a micro-batch of its own already. Of several processes all do so when one must.
        """
        while True:
            made, put_back = cut(self.tokens), random_states()
            try:
                result = work(made)
                ranks.gather(None)
                return result
            except Exception as error:
                cause, is_here = of_the_machine(error), not isinstance(error, ranks.OutOfMemoryElsewhere)
                # The others of a sharded run wait for a pass that this one cannot finish.
                if cause is None or cause.code != "out_of_memory" or is_sharded(model):
                    raise
                if is_here:
                    ranks.tell_out_of_memory()
                    if len(made) >= rows or self.tokens == 1:
                        raise
            # After the handler: the error's frames hold what is to be freed.
            parts = len(made)
            del made
            model.zero_grad()
            put_back()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            before = self.tokens
            self.tokens //= 2
            while is_here and len(cut(self.tokens)) == parts < len(cut(1)):
                self.tokens //= 2
            self.tokens = min(ranks.gather(self.tokens))
            message = f"Memory ran out {what}, with micro-batches of up to {before} padded tokens. It goes on with {self.tokens}."
            self._emit("warning", message=message)
