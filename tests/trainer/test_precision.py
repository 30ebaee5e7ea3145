"""What a run computes in: the precision that it asks for, and an attention that goes with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from app.jobs.combinations import STAGES as KINDS
from app.jobs.methods import Lora
from tests.trainer.conftest import Run
from tests.trainer.rows_of_the_table import METHODS, STAGES, job
from worker.trainer import precision
from worker.trainer.attention import takes_varlen
from worker.trainer.base import Base
from worker.trainer.failures import Failure
from worker.trainer.methods import lora


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU here: only the question whether fp16 is of use is answered as if there were. CPUs compute it, slowly."""
    monkeypatch.setattr(precision, "computes_fp16", lambda: True)


@pytest.fixture(autouse=True)
def usual_precision() -> Iterator[None]:
    """Leaves the process as the other tests expect it."""
    yield
    precision.compute_in("auto")


def begin_with_scale(patch: pytest.MonkeyPatch, scale: float) -> None:
    patch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=scale))


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["type"] == "step"]


@pytest.mark.parametrize(("asked", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_it_is_computed_in_what_is_asked_for(train: Run, tmp_path: Path, asked: str, dtype: str) -> None:
    events = train(hyperparameters={"precision": asked, "epochs": 4})
    made_with = json.loads((tmp_path / "out/manifest.json").read_text())["made_with"]
    assert (made_with["compute_dtype"], made_with["attention"]) == (dtype, "blockwise")
    [told] = [event for event in events if event["type"] == "started"]
    assert (told["compute_dtype"], told["attention"]) == (dtype, "blockwise")
    assert losses(events)[-1] < 0.8 * losses(events)[0]


def test_the_precisions_differ_and_not_by_much(train: Run) -> None:
    first = {
        asked: losses(train(out=asked, hyperparameters={"precision": asked, "max_steps": 1}))[0]
        for asked in ("fp32", "bf16")
    }
    assert first["bf16"] != first["fp32"]
    assert first["bf16"] == pytest.approx(first["fp32"], rel=0.01)


@pytest.mark.parametrize(
    ("has_bf16", "may_scale", "dtype"),
    [(True, True, torch.bfloat16), (False, True, torch.float16), (False, False, torch.float32)],
)
def test_on_a_gpu_without_bf16_auto_is_fp16(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, may_scale: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    precision.compute_in("auto", may_scale=may_scale)
    assert precision.compute_dtype() is dtype


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_frozen_weights_load_in_the_precision_that_is_computed_in(
    base: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    AutoModelForCausalLM.from_pretrained(base, dtype=stored).save_pretrained(tmp_path)
    precision.compute_in("bf16")
    loaded = lora.load_base(Base(str(tmp_path)), Lora())
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}


def test_without_a_gpu_fp16_is_refused_with_what_to_use(train: Run) -> None:
    with pytest.raises(Failure, match=r"hyperparameters\.precision: 'fp16'") as caught:
        train(hyperparameters={"precision": "fp16"})
    assert "'bf16', 'fp32' or 'auto'" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["sft", "rm", "kto", "dora", "lora+ and neftune", "qlora nf4", "full", "galore", "mod"]
)
def test_every_kind_of_weight_is_trained_in_fp16(
    train: Run, rows_of: Callable[[str], str], as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    begin_with_scale(monkeypatch, 16.0)
    changes = job((STAGES | METHODS)[name], precision="fp16", max_steps=3)
    events = train(rows=rows_of(KINDS[changes.get("stage", "sft")].rows), **changes)
    assert [event["grad_norm"] > 0 for event in events if event["type"] == "step"] == [True] * 3


def test_a_step_whose_gradients_overflow_in_fp16_is_left_out(
    train: Run, as_on_a_gpu: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_with_scale(monkeypatch, 2.0**30)
    events = train(hyperparameters={"precision": "fp16", "epochs": 6})
    norms = [event["grad_norm"] for event in events if event["type"] == "step"]
    assert norms[:8] == [None] * 8
    assert losses(events)[-1] < 0.8 * losses(events)[0]
    train(out="few", hyperparameters={"precision": "fp16", "max_steps": 8})
    learned = load_file(tmp_path / "few/adapter/adapter_model.safetensors")
    assert not any(weight.any() for name, weight in learned.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("scale", "norm", "left_out"), [(1.0, torch.inf, True), (0.5, torch.nan, False), (8.0, 3.0, False)]
)
def test_where_no_scale_is_small_enough_the_run_ends(scale: float, norm: float, left_out: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    assert precision.was_left_out(SimpleNamespace(scaler=scaler), norm) is left_out
    assert not precision.was_left_out(SimpleNamespace(scaler=None), norm)


def test_varlen_attention_is_taken_where_hardware_precision_and_architecture_have_it() -> None:
    config, ampere = LlamaConfig(), (8, 0)
    assert takes_varlen(config, ampere, torch.bfloat16)
    assert takes_varlen(config, (9, 0), torch.float16)
    assert not takes_varlen(config, (7, 5), torch.float16)
    assert not takes_varlen(config, ampere, torch.float32)
    assert not takes_varlen(LlamaConfig(head_dim=512), ampere, torch.bfloat16)
    assert not takes_varlen(LlamaConfig(attention_dropout=0.1), ampere, torch.bfloat16)
    torch.use_deterministic_algorithms(True)
    assert not takes_varlen(config, ampere, torch.bfloat16)
    torch.use_deterministic_algorithms(False)
