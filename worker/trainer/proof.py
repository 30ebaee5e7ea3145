"""Evidence that a fine-tune is applied where it is served: a token whose probability it changed."""

from __future__ import annotations

from typing import Any

import torch

from worker.trainer.base import attend
from worker.trainer.data.rows import Item
from worker.trainer.precision import autocast

_ROWS = 16


class Proof:
    """Up to 16 prompts, each with the first token that is learned after it (or, where rows have no answers, the one that the
    untrained model gives), and what the untrained model says of them."""

    def __init__(self, model: Any, items: list[Item]) -> None:
        """`model` is the base model, prepared, and with nothing learned."""
        self.token_ids = []
        for item in items[:: -(-len(items) // _ROWS)]:
            example = item.examples[0]
            first = 1 + int(example.loss_mask[1:].argmax())
            prompt = example.token_ids[:first] if item.row is None else example.token_ids
            ids = prompt.tolist()
            follows = int(example.token_ids[first]) if item.row is None else int(self._said(model, ids).argmax())
            self.token_ids.append([*ids, follows])
        self.base = self._log_probabilities(model)

    def find(self, model: Any) -> dict[str, Any]:
        """The prompt that base and trained model disagree on most.

        Returns token_ids (the prompt and the token after it), base_logprob and tuned_logprob: natural logarithms of the
        probability of the last id given those before it. An engine that answers with base_logprob has accepted an
        adapter and does not apply it.
        """
        tuned = self._log_probabilities(model)
        at = max(range(len(tuned)), key=lambda i: abs(tuned[i] - self.base[i]))
        return {"token_ids": self.token_ids[at], "base_logprob": self.base[at], "tuned_logprob": tuned[at]}

    def _log_probabilities(self, model: Any) -> list[float]:
        return [float(self._said(model, token_ids[:-1])[token_ids[-1]]) for token_ids in self.token_ids]

    @torch.no_grad()
    def _said(self, model: Any, token_ids: list[int]) -> torch.Tensor:
        """The log-probability of each token of the vocabulary after these."""
        device, was_training = next(model.parameters()).device, model.training
        model.eval()
        attend(model, len(token_ids))
        with autocast(device):
            inputs = torch.tensor([token_ids], device=device)
            logits = model(input_ids=inputs, use_cache=False).logits[0, -1]
        model.train(was_training)
        said: torch.Tensor = logits.float().log_softmax(dim=-1)
        return said


@torch.no_grad()
def find_score(model: Any, items: list[Item]) -> dict[str, Any]:
    """Of a reward model: token_ids of a text, and the score that it gives it."""
    model.eval()
    token_ids = items[0].examples[0].token_ids.tolist()
    device = next(model.parameters()).device
    attend(model, len(token_ids))
    with autocast(device):
        score = model(input_ids=torch.tensor([token_ids], device=device)).logits[0, 0]
    return {"token_ids": token_ids, "score": float(score)}
