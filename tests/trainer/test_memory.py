"""Memory that runs out: smaller micro-batches, and nothing else that is different."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import Qwen2Config, Qwen2ForCausalLM

from app.jobs import estimate
from app.jobs.combinations import STAGES as KINDS
from app.jobs.hyperparameters import Precision, Supervised
from app.jobs.methods import Full, Lora, Method, Mod, Qlora
from app.jobs.spec import JobSpec
from tests.trainer.conftest import Run
from tests.trainer.memory import limit
from tests.trainer.rows_of_the_table import METHODS, STAGES, job
from worker.trainer import attention, precision
from worker.trainer.base import Base
from worker.trainer.failures import of_the_machine
from worker.trainer.methods import METHODS as METHOD_MODULES

SHAPES: dict[str, dict[str, Any]] = {
    "sft": {"method": {"dropout": 0.2, "plus": 4}, "hyperparameters": {"neftune_alpha": 5}},
    "packed": {"method": {"dropout": 0.2}, "hyperparameters": {"packing": True}},
    "dpo": {"stage": "dpo", "method": {"dropout": 0.2}},
    "kto": {"stage": "kto", "method": {"dropout": 0.2}},
    "qlora": {"method": {"type": "qlora", "quantization": "int8", "dropout": 0.2}},
}


def course(events: list[dict[str, Any]]) -> list[tuple[str, int, float]]:
    """What was measured, in order."""
    return [(each["type"], each["step"], each["loss"]) for each in events if each["type"] in ("step", "validation")]


def of_type(events: list[dict[str, Any]], type: str) -> list[dict[str, Any]]:
    return [each for each in events if each["type"] == type]


def warnings(events: list[dict[str, Any]]) -> list[str]:
    return [each["message"] for each in of_type(events, "warning")]


@pytest.mark.parametrize("name", SHAPES)
def test_where_memory_runs_out_the_run_is_that_of_smaller_micro_batches(
    train: Run, rows_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes = job(SHAPES[name], epochs=1) | {"validation": {"fraction": 0.2}}
    rows = rows_of(KINDS[changes.get("stage", "sft")].rows)
    monkeypatch.setitem(estimate.MICRO_BATCH_TOKENS, "cpu", 128)
    expected = train(out="small", rows=rows, **changes)
    monkeypatch.setitem(estimate.MICRO_BATCH_TOKENS, "cpu", 4096)
    whole = train(out="whole", rows=rows, **changes)
    limit(monkeypatch, 128)
    found = train(out="limited", rows=rows, **changes)
    assert course(found) == course(expected) != course(whole)
    assert warnings(found)[-1].endswith("It goes on with 128.")
    assert not warnings(expected)
    [small], [limited] = (list((tmp_path / out).glob("adapter/*.safetensors")) for out in ("small", "limited"))
    assert limited.read_bytes() == small.read_bytes()


@pytest.mark.parametrize("name", [*SHAPES, "full", "galore", "gradient checkpointing"])
def test_a_preflight_leaves_no_trace(
    train: Run, rows_of: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    changes = job((METHODS | SHAPES)[name], epochs=1)
    rows = rows_of(KINDS[changes.get("stage", "sft")].rows)
    without = train(out="without", rows=rows, **changes)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    with_one = train(out="with", rows=rows, **changes)
    assert course(with_one) == course(without)
    found, expected = (next((tmp_path / out).glob("*/*.safetensors")) for out in ("with", "without"))
    assert found.read_bytes() == expected.read_bytes()
    [told] = of_type(with_one, "preflight")
    assert told["peak_memory_bytes"] > told["estimated_memory_bytes"] > 0
    assert told["seconds"] > 0
    assert [each["phase"] for each in of_type(with_one, "phase")][-2:] == ["preflight", "training"]
    [skipped] = of_type(without, "preflight")
    assert (skipped["peak_memory_bytes"], skipped["seconds"]) == (None, None)


def tensors_held() -> int:
    """Bytes of all tensors that there are but weights."""
    gc.collect()
    held = (each.untyped_storage() for each in gc.get_objects() if type(each) is torch.Tensor and not each.is_meta)
    return sum({storage.data_ptr(): storage.nbytes() for storage in held}.values())


@pytest.mark.parametrize("name", ["full", "galore", "apollo"])
def test_a_preflight_has_gradients_and_moments_beside_the_rows_and_gives_them_back(
    train: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    seen = list[tuple[int, int]]()
    trained = state = 0

    def kept(name_of_weight: str, weight: torch.Tensor) -> int:
        if name == "full" or weight.ndim < 2 or "layers" not in name_of_weight:
            return 2 * weight.nbytes
        projection = min(weight.shape) if name == "galore" else 0
        return 4 * METHODS[name]["method"]["rank"] * (2 * max(weight.shape) + projection)

    def look(model: torch.nn.Module, _: object) -> None:
        nonlocal trained, state
        if isinstance(model, Qwen2ForCausalLM) and model.training:
            weights = list(model.parameters())
            trained = sum(weight.nbytes for weight in weights)
            state = sum(kept(*named) for named in model.named_parameters())
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            of_gradients = sum(each.nbytes for each in gradients)
            seen.append((of_gradients, tensors_held() - of_gradients))

    hook = register_module_forward_pre_hook(look)
    try:
        train(**METHODS[name] | {"hyperparameters": {"max_steps": 1}})
    finally:
        hook.remove()
    (in_preflight, then), (in_step, now) = seen
    assert (in_preflight, in_step) == (trained, 0)
    assert then - now == pytest.approx(state, rel=0.05)


def test_what_does_not_fit_is_found_out_before_anything_is_trained(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    limit(monkeypatch, 128, only_training=True)
    events = train()
    assert {each["message"][:31] for each in of_type(events, "warning")} == {"Memory ran out in the preflight"}
    last_warning = max(number for number, each in enumerate(events) if each["type"] == "warning")
    assert last_warning < next(number for number, each in enumerate(events) if each["type"] == "step")


@pytest.mark.parametrize("name", ["sft", "rl"])
def test_it_says_when_memory_ran_out_and_what_it_goes_on_with(
    train: Run, rows_of: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    limit(monkeypatch, 128, only_training=True)
    changes = job(STAGES[name], epochs=1, max_steps=1)
    said = warnings(train(rows=rows_of(KINDS[changes.get("stage", "sft")].rows), **changes))
    before = f"with micro-batches of up to {estimate.MICRO_BATCH_TOKENS['cpu']} padded tokens"
    assert said[0].startswith(f"Memory ran out at step 1, {before}. It goes on with ")


def test_a_single_row_that_does_not_fit_ends_the_run(train: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(monkeypatch, 8)
    with pytest.raises(RuntimeError) as caught:
        train()
    cause = of_the_machine(caught.value)
    assert cause is not None
    assert cause.code == "out_of_memory"


FORWARDS: dict[str, Method] = {
    "lora": Lora(), "dropout": Lora(dropout=0.1), "nf4": Qlora(), "int8": Qlora(quantization="int8"), "full": Full(type="full"),
    "mod": Mod(type="mod"), "mod of all": Mod(type="mod", capacity=1),
}  # fmt: skip


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
@pytest.mark.parametrize("width", [128, 640])
@pytest.mark.parametrize("name", FORWARDS)
def test_what_a_forward_keeps_is_what_the_estimate_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, width: int, asked: Precision
) -> None:
    method = FORWARDS[name]
    monkeypatch.setattr(precision, "_asked", asked)
    config = Qwen2Config(
        vocab_size=32, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2
    )  # fmt: skip
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    own = METHOD_MODULES[method.type]
    model = own.prepare(own.load_base(Base(str(tmp_path)), method), method).train()
    ids = torch.randint(32, (2, width))
    there = {part.untyped_storage().data_ptr() for part in (*model.parameters(), *model.buffers())}
    kept = dict[int, int]()

    def note(part: torch.Tensor) -> torch.Tensor:
        storage = part.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return part

    attention.choose(model)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda part: part), precision.autocast(torch.device("cpu")):
        made = model(input_ids=ids, use_cache=False, logits_to_keep=1)
    assert made.logits.requires_grad
    parameters = sum(weight.numel() for weight in Qwen2ForCausalLM(config).parameters())
    shape = estimate.shape_of(config.to_dict(), parameters)
    assert shape is not None
    spec = JobSpec(method=method, hyperparameters=Supervised(batch_size=2, precision=asked))
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    said = estimate.memory(
        spec,
        shape,
        trained=trained,
        longest=width,
        loss_share=0.0,
        device="cpu",
        compute_bytes=precision.compute_dtype().itemsize,
    ).activations
    # Of five blocks one is for the gradients on their way.
    assert said * 4 / 5 == pytest.approx(sum(kept.values()), rel=0.12)
