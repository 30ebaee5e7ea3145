"""A vLLM plugin that keeps adapters away from requests for the base model.

vLLM loads it in each of its processes: `worker/engine/vllm.py` puts this folder on their `PYTHONPATH`, and the
`dist-info` folder beside this file declares the entry point. It runs in vLLM's environment, so it imports nothing of
Burnish.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def install() -> None:
    """Correct the adapter operations of vLLM's CPU build.

    A token of the base model has the adapter index -1. vLLM 0.32 reads that as "the last slot". As soon as every slot is
    in use, a base request that shares a batch with adapters is answered with the last slot's adapter (vLLM's pull
    requests 48421 and 49656).
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for name in ("bgmv_shrink", "bgmv_expand"):
        corrected = _skip_base_tokens(getattr(lora_ops, name))
        # `lora_ops` calls them for prompts, and `punica_cpu` calls them by the names that it imported.
        setattr(lora_ops, name, corrected)
        setattr(punica_cpu, name, corrected)


def _skip_base_tokens(operation: Callable[..., None]) -> Callable[..., None]:
    """The same operation with the inputs of base tokens set to zero, so that the adapter adds nothing to them."""

    @wraps(operation)
    def corrected(inputs: Any, weights: Any, output: Any, indices: Any, *rest: Any, **options: Any) -> None:
        inputs = inputs.masked_fill((indices < 0).unsqueeze(1), 0)
        operation(inputs, weights, output, indices, *rest, **options)

    return corrected
