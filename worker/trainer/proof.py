"""Evidence that a fine-tune is applied where it is served: a token whose probability it changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.measuring import log_probabilities, measured_answers
from worker.trainer.micro_batches import MicroBatches
from worker.trainer.precision import autocast

_ROWS = 16


class Proof:
    """Up to 16 prompts, each with the first token that is learned after it (or, where rows have no answers, the one that the
    untrained model gives), and what the untrained model says of them."""

    def __init__(self, model: Any, items: list[Item], pad_id: int, micro_batches: MicroBatches) -> None:
        """`model` is the base model, prepared, and with nothing learned."""
        chosen = items[:: -(-len(items) // _ROWS)]
        if chosen[0].row is None:
            texts = [_up_to_first(item.examples[0]) for item in chosen]
        else:
            prompts = [item.examples[0].token_ids for item in chosen]
            likeliest = measured_answers(model, prompts, micro_batches, ends=[], new_tokens=1, pad_id=pad_id)
            texts = [np.concatenate(both) for both in zip(prompts, likeliest, strict=True)]
        texts.sort(key=len, reverse=True)
        self._asked = [Item((Example(text, np.arange(len(text)) == len(text) - 1),)) for text in texts]
        self._pad_id, self._micro_batches = pad_id, micro_batches
        self._base = self._log_probabilities(model)

    def find(self, model: Any) -> dict[str, Any]:
        """The prompt that base and trained model disagree on most.

        Returns token_ids (the prompt and the token after it), base_logprob and tuned_logprob: natural logarithms of the
        probability of the last id given those before it. An engine that answers with base_logprob has accepted an
        adapter and does not apply it.
        """
        tuned = self._log_probabilities(model)
        at = max(range(len(tuned)), key=lambda i: abs(tuned[i] - self._base[i]))
        token_ids = self._asked[at].examples[0].token_ids.tolist()
        return {"token_ids": token_ids, "base_logprob": self._base[at], "tuned_logprob": tuned[at]}

    def _log_probabilities(self, model: Any) -> list[float]:
        return log_probabilities(model, self._asked, self._pad_id, self._micro_batches)


def _up_to_first(example: Example) -> NDArray[np.int32]:
    """A text's tokens up to the first that is learned, and with it."""
    return example.token_ids[: 2 + int(example.loss_mask[1:].argmax())]


@torch.no_grad()
def find_score(model: Any, items: list[Item]) -> dict[str, Any]:
    """Of a reward model: token_ids of a text, and the score that it gives it."""
    model.eval()
    token_ids = items[0].examples[0].token_ids.tolist()
    device = next(model.parameters()).device
    with autocast(device):
        score = model(input_ids=torch.tensor([token_ids], device=device)).logits[0, 0]
    return {"token_ids": token_ids, "score": float(score)}
