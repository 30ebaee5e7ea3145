"""Evidence that an adapter is applied where it is served: a token whose probability it changed."""

from __future__ import annotations

from typing import Any

import torch

from worker.trainer.base import autocast
from worker.trainer.data.render import Example

_ROWS = 16


@torch.no_grad()
def find_proof(model: Any, examples: list[Example]) -> dict[str, Any]:
    """Of up to 16 rows, the one whose first loss token base and tuned model disagree on most.

    Returns token_ids (the prompt and that token), base_logprob and tuned_logprob: natural logarithms of the probability
    of the last id given those before it, with the adapter off and on. An engine that answers with base_logprob has
    accepted the adapter and does not apply it.
    """
    model.eval()
    proofs = []
    for example in examples[:: -(-len(examples) // _ROWS)]:
        first = 1 + int(example.loss_mask[1:].argmax())
        token_ids = example.token_ids[: first + 1].tolist()
        tuned = _last_logprob(model, token_ids)
        with model.disable_adapter():
            base = _last_logprob(model, token_ids)
        proofs.append({"token_ids": token_ids, "base_logprob": base, "tuned_logprob": tuned})
    return max(proofs, key=lambda proof: abs(proof["tuned_logprob"] - proof["base_logprob"]))


def _last_logprob(model: Any, token_ids: list[int]) -> float:
    device = next(model.parameters()).device
    with autocast(device):
        logits = model(input_ids=torch.tensor([token_ids[:-1]], device=device), use_cache=False).logits[0, -1]
    return float(logits.float().log_softmax(dim=-1)[token_ids[-1]])
