"""Packed rows: what texts say in them is what they say alone, and so is what is learned from them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from app.jobs.combinations import TRIED_FAMILIES
from app.jobs.spec import TrainerSpec
from benchmarks.families import FAMILIES, TINY, make
from tests.trainer.conftest import Run
from tests.trainer.test_families import load
from tests.trainer.test_sft import gradients, make_examples, plain_loss
from worker.trainer import attention
from worker.trainer.data.render import Example
from worker.trainer.data.rows import Item
from worker.trainer.failures import Failure
from worker.trainer.stages import packed, sft, texts

# Below the width from which PyTorch's own attention is used on a CPU, and above it; longer than the families' windows of 16.
LENGTHS = ((40, 25, 1, 7, 33), (150, 90, 61, 40))


@pytest.fixture
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def some_text(length: int) -> Example:
    token_ids = np.random.default_rng(length).integers(5, 500, length).astype(np.int32)
    return Example(token_ids, np.ones(length, dtype=np.bool_))


def says(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return texts.forward(model, batch)


def says_alone(model: Any, example: Example) -> torch.Tensor:
    return says(model, texts.collate([example], 0))[0, -len(example.token_ids) :]


def plain_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, begins: torch.Tensor, *others: Any, **options: Any
) -> torch.Tensor:
    """What torch's `varlen_attn` is documented to do, which CPUs have no kernel for: [T, heads, width] of each text alone."""
    before, after = options["window_size"]
    sharing = query.shape[1] // key.shape[1]
    found = []
    for start, end in itertools.pairwise(begins.tolist()):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)[None, :]
        unseen = (distance < -after) | (distance > before if before >= 0 else torch.tensor(False))
        scores = q @ k.repeat_interleave(sharing, 0).transpose(1, 2) * options["scale"]
        weights = scores.masked_fill(unseen, -torch.inf).softmax(dim=-1)
        found.append((weights @ v.repeat_interleave(sharing, 0)).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.code])
def test_a_text_in_a_packed_row_says_what_it_says_alone(tmp_path: Path, name: str, lengths: tuple[int, ...]) -> None:
    model = load(make(FAMILIES[name], tmp_path, TINY), False)
    assert model.config.model_type in TRIED_FAMILIES
    examples = [some_text(length) for length in lengths]
    together = packed.collate(examples)
    alone = torch.cat([says_alone(model, example) for example in examples])
    torch.testing.assert_close(says(model, together)[0], alone, rtol=1e-4, atol=1e-4)
    # They would say something else if they saw each other.
    seen = says(model, together | {"attention_mask": torch.ones_like(together["input_ids"])})[0]
    assert (seen - alone).abs().max() > 0.1


@pytest.mark.parametrize("lengths", [*LENGTHS, (1, 3)])
@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if not family.code and name != "gemma2"])
def test_so_it_does_where_attention_is_told_the_boundaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lengths: tuple[int, ...]
) -> None:
    monkeypatch.setattr(attention, "varlen_attn", plain_kernel)
    model = load(make(FAMILIES[name], tmp_path, TINY), False)
    assert (
        model.config._attn_implementation == "sdpa"
    )  # which Gemma 2's capped scores cannot be, so `choose` leaves it alone
    examples = [some_text(length) for length in lengths]
    alone = torch.cat([says_alone(model, example) for example in examples])
    padded = says(model, texts.collate(examples, 0))
    model.set_attn_implementation(attention.VARLEN)
    torch.testing.assert_close(says(model, packed.collate(examples))[0], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(says(model, texts.collate(examples, 0)), padded)
    without_padding = texts.collate(examples[-1:], 0, width=lengths[-1]) | {"attention_mask": None}
    torch.testing.assert_close(says(model, without_padding)[0], alone[-lengths[-1] :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make_mask", [create_causal_mask, create_sliding_window_causal_mask])
def test_no_mask_is_built_where_attention_is_told_the_boundaries(make_mask: Callable[..., Any]) -> None:
    config = MistralConfig(sliding_window=16, attn_implementation=attention.VARLEN)
    together = packed.collate([some_text(length) for length in LENGTHS[0]])
    embeddings = torch.zeros(*together["input_ids"].shape, 8)
    assert make_mask(config, embeddings, None, None, together["position_ids"]) is None


def a_kernel_that_is_not_there(*given: Any, **options: Any) -> torch.Tensor:
    raise RuntimeError("no kernel image is available for execution on the device")


def a_kernel_that_sees_the_text_before(*given: Any, **options: Any) -> torch.Tensor:
    query, key, value, begins, *others = given
    return plain_kernel(query, key, value, begins[[0, -1]], *others, **options)


@pytest.mark.parametrize(
    ("kernel", "is_right"),
    [(plain_kernel, True), (a_kernel_that_is_not_there, False), (a_kernel_that_sees_the_text_before, False)],
)
def test_a_kernel_is_tried_before_it_is_trusted(monkeypatch: pytest.MonkeyPatch, kernel: Any, is_right: bool) -> None:
    monkeypatch.setattr(attention, "varlen_attn", kernel)
    before = torch.get_rng_state()
    assert attention.varlen_is_right(64, torch.float32, torch.device("cpu")) is is_right
    assert torch.equal(torch.get_rng_state(), before)


def test_every_family_that_is_packed_was_tried() -> None:
    made = {"Gemma3TextConfig": "gemma3_text"}
    tried = {made.get(family.config, family.config.removesuffix("Config").lower()) for family in FAMILIES.values()}
    assert tried == set(TRIED_FAMILIES)


@pytest.mark.parametrize("max_tokens", [10_000, 64, 1], ids=["one row", "some", "one a text"])
def test_loss_and_gradients_are_those_of_rows_that_are_not_packed(model: Any, max_tokens: int) -> None:
    examples = make_examples()
    items = [Item((example,)) for example in examples]
    made = packed.batches(items, 0, max_tokens)
    assert len(made) == {10_000: 1, 64: 2, 1: 5}[max_tokens]
    found = torch.stack([sft.loss(model, batch, None)[0] for batch in made]).sum() / sum(b["count"] for b in made)
    [whole] = sft.batches(items, 0, 10_000)
    expected = sft.loss(model, whole, None)[0] / whole["count"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, plain_loss(model, examples), rtol=1e-5, atol=0)
    own, others = gradients(model, found), gradients(model, expected)
    assert (own - others).norm() < 1e-5 * others.norm()


def test_packed_rows_stay_within_the_budget_hold_every_text_and_have_no_padding() -> None:
    items = [Item((some_text(length),)) for length in range(3, 60)]
    parts = packed.cut(items, 64)
    assert sorted(id(item) for part in parts for item in part) == sorted(map(id, items))
    assert all(sum(item.length for item in part) <= 64 for part in parts)
    assert len(parts) < 1.1 * sum(item.length for item in items) / 64
    assert len(parts) < 0.8 * len(texts.cut(items, 64))
    batch = packed.batches(items, 0, 64)[0]
    assert batch["tokens"] == batch["input_ids"].numel()
    assert [len(part) for part in packed.cut(items, 1)] == [1] * len(items)


@pytest.mark.parametrize(("asked", "is_packed"), [("auto", torch.cuda.is_available()), (True, True), (False, False)])
def test_rows_are_packed_where_it_is_asked_for_and_by_themselves_on_a_gpu(
    train: Run, tmp_path: Path, asked: Any, is_packed: bool
) -> None:
    events = train(hyperparameters={"packing": asked, "max_steps": 2})
    [told] = [event for event in events if event["type"] == "started"]
    made_with = json.loads((tmp_path / "out/manifest.json").read_text())["made_with"]
    assert told["packed"] is made_with["packed"] is is_packed


def test_a_step_is_the_same_rows_packed_or_not(train: Run) -> None:
    settings = {"precision": "fp32", "epochs": 1}
    plain, in_rows = (
        [
            event
            for event in train(out=str(asked), hyperparameters=settings | {"packing": asked})
            if event["type"] == "step"
        ]
        for asked in (False, True)
    )
    assert len(plain) == 6
    assert [event["tokens"] for event in plain] == [event["tokens"] for event in in_rows]
    assert [event["loss"] for event in in_rows] == pytest.approx([event["loss"] for event in plain], rel=1e-3)


def test_with_varlen_attention_families_that_are_known_are_packed(
    make_spec: Callable[..., TrainerSpec], model: Any
) -> None:
    model.config._attn_implementation_internal = attention.VARLEN
    assert packed.is_wanted(make_spec(), model)
    assert packed.is_wanted(make_spec(stage="pt"), model)
    refused = {
        "own code": make_spec(own_code=True),
        "NEFTune": make_spec(hyperparameters={"neftune_alpha": 5}),
        "routers": make_spec(method={"type": "mod"}),
        "another stage": make_spec(stage="dpo"),
        "not wanted": make_spec(hyperparameters={"packing": False}),
    }
    assert {why: packed.is_wanted(spec, model) for why, spec in refused.items()} == dict.fromkeys(refused, False)
    model.config.model_type = "another"
    assert not packed.is_wanted(make_spec(), model)
    with pytest.raises(Failure, match=r"hyperparameters\.packing: .*a model of type 'another'"):
        packed.is_wanted(make_spec(hyperparameters={"packing": True}), model)
