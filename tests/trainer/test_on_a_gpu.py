"""What only a GPU can show; where there is none these tests are left out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from safetensors.torch import load_file
from torch.nn.attention.varlen import varlen_attn
from transformers import MistralConfig, MistralForCausalLM

from tests.trainer.conftest import Run
from tests.trainer.test_packing import plain_kernel, some_text
from worker.trainer import attention
from worker.trainer.stages import packed, texts

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a GPU's kernels are tried, and there is no GPU here"
)

LENGTHS = (90, 700, 61, 40, 1)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which is read once, before the first matrix product


@pytest.mark.parametrize("window", [None, 16])
def test_the_kernel_does_as_documented(window: int | None) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(sum(LENGTHS), heads, 64) for heads in (4, 2, 2)]
    begins = torch.tensor([0, *itertools.accumulate(LENGTHS)], dtype=torch.int32)
    options: dict[str, Any] = {
        "scale": 0.125,
        "window_size": (-1 if window is None else window - 1, 0),
        "enable_gqa": True,
    }
    both = []
    kernel: Callable[..., torch.Tensor]
    for kernel, device, dtype in ((plain_kernel, "cpu", torch.float32), (varlen_attn, "cuda", torch.bfloat16)):
        given = [tensor.clone().to(device, dtype).requires_grad_() for tensor in tensors]
        found = kernel(*given, begins.to(device), begins.to(device), max(LENGTHS), max(LENGTHS), **options)
        torch.autograd.backward((found.float() ** 2).sum())
        both.append([found, *(tensor.grad for tensor in given)])
    for plain, quick in zip(*both, strict=True):
        assert torch.dist(plain, quick.cpu().float()) < 2e-2 * plain.norm()


@pytest.mark.parametrize("window", [None, 16])
def test_packed_rows_say_and_learn_what_padded_ones_do(window: int | None) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=window, initializer_range=0.05,
    )  # fmt: skip
    model: Any = MistralForCausalLM(config).cuda()
    examples = [some_text(length) for length in LENGTHS]
    said, learned = [], []
    for how, batch in (("sdpa", texts.collate(examples, 0)), (attention.VARLEN, packed.collate(examples))):
        model.set_attn_implementation(how)
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            losses = texts.losses(model, send_to_device(batch, "cuda"))
        torch.autograd.backward(losses.sum())
        said.append(losses)
        learned.append(torch.cat([weight.grad.flatten() for weight in model.parameters()]))
    for plain, quick in zip(*(each.split([length - 1 for length in LENGTHS]) for each in said), strict=True):
        torch.testing.assert_close(quick, plain, rtol=0, atol=5e-2)
    assert torch.dist(*learned) < 5e-2 * learned[0].norm()


@pytest.mark.parametrize("method", [{"type": "lora"}, {"type": "qlora"}, {"type": "qlora", "quantization": "int8"}])
def test_a_run_on_a_gpu_learns_from_packed_rows(train: Run, tmp_path: Path, method: dict[str, Any]) -> None:
    events = train(method=method, hyperparameters={"max_steps": 12, "epochs": 3, "learning_rate": 5e-3})
    losses = [event["loss"] for event in events if event["type"] == "step"]
    assert losses[-1] < losses[0]
    [told] = [event for event in events if event["type"] == "started"]
    assert (told["attention"], told["packed"], told["compute_dtype"]) == (attention.VARLEN, True, "bfloat16")
    [flight] = [event for event in events if event["type"] == "preflight"]
    assert flight["peak_memory_bytes"] > 0


def test_deterministic_runs_have_the_same_bits(train: Run, tmp_path: Path) -> None:
    try:
        for out in ("one", "other"):
            train(out=out, hyperparameters={"max_steps": 6, "deterministic": True})
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = (load_file(tmp_path / out / "adapter/adapter_model.safetensors") for out in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
