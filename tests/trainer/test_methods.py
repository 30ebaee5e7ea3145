"""What each method changes of a model, and how: asked of the prepared model, before any training."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from app.jobs.methods import Freeze, Lora, Method, Qlora
from app.models.inspection import inspect_model
from tests.trainer.conftest import Run
from tests.trainer.rows_of_the_table import METHODS as ROWS
from tests.trainer.rows_of_the_table import job
from worker.trainer.base import Base
from worker.trainer.methods import METHODS, lora, qlora
from worker.trainer.precision import compute_in

LAYER = "model.layers.0.mlp.up_proj"
IDS = torch.arange(10, 30)[None]


@pytest.fixture(autouse=True)
def in_fp32() -> Iterator[None]:
    """Also where this machine is quick in bfloat16: what a method changes is told from rounding."""
    compute_in("fp32")
    yield
    compute_in("auto")


def prepared(base: Path, method: Method, **options: Any) -> Any:
    own = METHODS[method.type]
    return own.prepare(own.load_base(Base(str(base), **options), method), method)


def adapted(base: Path, method: Lora | Qlora) -> Any:
    """A layer that has an adapter."""
    return prepared(base, method).get_base_model().get_submodule(LAYER)


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return logits


def trained(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("method", "scale"),
    [
        (Lora(rank=4, alpha=6), 6 / 4),
        (Lora(rank=4, alpha=6, variant="rslora"), 6 / math.sqrt(4)),
        (Qlora(rank=4, alpha=6, quantization="int8"), 6 / 4),
        (Qlora(rank=4, alpha=6, quantization="int8", variant="rslora"), 6 / math.sqrt(4)),
    ],
)
def test_an_update_is_scaled_by_alpha_over_the_rank_or_its_root(base: Path, method: Lora | Qlora, scale: float) -> None:
    layer = adapted(base, method)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.manual_seed(0)
    torch.nn.init.normal_(up)
    x = torch.randn(3, down.shape[1])
    with torch.no_grad():
        added = layer(x.clone()) - layer.base_layer(x.clone())
    torch.testing.assert_close(added, scale * x @ down.T @ up.T, rtol=0.02, atol=0.02 * float(added.abs().max()))


def test_dropout_leaves_out_inputs_of_an_adapter_in_training_alone(base: Path) -> None:
    layer = adapted(base, Lora(dropout=0.5))
    x = torch.ones(1, 32)
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    with torch.no_grad():
        assert not torch.equal(layer.train()(x), layer(x))
        assert torch.equal(layer.eval()(x), layer(x))


def test_only_the_listed_modules_get_adapters(base: Path) -> None:
    names = trained(prepared(base, Lora(target_modules=["q_proj", "layers.1.mlp.up_proj"])))
    assert {name.split(".lora_")[0].split("layers.")[1] for name in names} == {
        "0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj"
    }  # fmt: skip


def test_dora_learns_the_magnitudes_of_weights_apart_and_saves_them(base: Path, tmp_path: Path) -> None:
    model = prepared(base, Lora(variant="dora"))
    layer = model.get_base_model().get_submodule(LAYER)
    magnitude = layer.lora_magnitude_vector["default"].weight
    assert magnitude.requires_grad
    torch.testing.assert_close(magnitude.detach(), layer.base_layer.weight.norm(dim=1).detach())
    x = torch.randn(3, 32)
    with torch.no_grad():
        before = layer(x)
        magnitude *= 2
        torch.testing.assert_close(layer(x), 2 * before)
    lora.save(model, tmp_path, "base")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["use_dora"] is True
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(saved[f"base_model.model.{LAYER}.lora_magnitude_vector"], magnitude)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path)
    torch.testing.assert_close(said(again), said(model), rtol=1e-4, atol=1e-4)


def test_pissa_begins_with_the_principal_part_of_a_weight_and_changes_nothing(base: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(base)
    model = prepared(base, Lora(rank=4, variant="pissa"))
    layer = model.get_base_model().get_submodule(LAYER)
    part = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    u, s, v = torch.linalg.svd(plain.get_submodule(LAYER).weight.detach())
    torch.testing.assert_close(part.detach(), u[:, :4] * s[:4] @ v[:4], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(said(model), said(plain), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [True, False])
def test_a_base_is_kept_in_the_4_bits_that_were_asked_for(base: Path, quantization: Any, double: bool) -> None:
    model = qlora.load_base(Base(str(base)), Qlora(quantization=quantization, double_quantization=double))
    states = [module.weight.quant_state for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(states) == 2 * 7  # all but the head
    assert {(state.quant_type, state.nested) for state in states} == {(quantization, double)}


def test_a_base_is_kept_in_8_bits(base: Path) -> None:
    model = qlora.load_base(Base(str(base)), Qlora(quantization="int8"))
    kept = [module.weight.dtype for module in model.modules() if isinstance(module, Linear8bitLt)]
    assert kept == [torch.int8] * 2 * 7


@pytest.mark.parametrize("layers", [1, 2])
def test_freeze_trains_the_last_blocks_and_a_reward_model_s_score(base: Path, layers: int) -> None:
    model = prepared(base, Freeze(type="freeze", layers=layers))
    last = {
        name
        for name, _ in model.named_parameters()
        if name.startswith(("model.layers.0.", "model.layers.1.")[-layers:])
    }
    assert trained(model) == last
    scorer = prepared(base, Freeze(type="freeze", layers=layers), makes="reward model", pad_id=0)
    assert trained(scorer) == last | {"score.weight"}


def test_the_learning_rate_of_b_is_so_many_times_that_of_a(base: Path) -> None:
    model = prepared(base, Lora(plus=4))
    made = lora.optimizer(model, Lora(plus=4), {"lr": 0.01, "weight_decay": 0.1})
    assert made is not None
    names = {id(weight): name for name, weight in model.named_parameters()}
    given = {
        (names[id(weight)].split(".")[-3], group["lr"], group["weight_decay"])
        for group in made.param_groups
        for weight in group["params"]
    }
    assert given == {("lora_A", 0.01, 0.1), ("lora_B", 0.04, 0.1)}
    assert sum(len(group["params"]) for group in made.param_groups) == len(trained(model))


@pytest.mark.parametrize(("weights", "is_the_base"), [("base", True), ("random", False)])
def test_random_weights_are_not_those_of_the_base(
    train: Run, rows_of: Any, base: Path, tmp_path: Path, weights: str, is_the_base: bool
) -> None:
    settings = {"initial_weights": weights, "max_steps": 1, "learning_rate": 1e-9}
    train(
        stage="pt", method={"type": "full"}, rows=rows_of("text"), hyperparameters=settings, deploy={"mode": "merged"}
    )
    ours, others = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out/merged", base))
    matrices = [name for name, weight in others.items() if weight.ndim == 2]
    assert {name: torch.allclose(ours[name], others[name], atol=1e-3) for name in matrices} == dict.fromkeys(
        matrices, is_the_base
    )


def test_random_weights_need_an_architecture_and_no_weights(
    train: Run, rows_of: Any, base: Path, tmp_path: Path
) -> None:
    architecture = shutil.copytree(base, tmp_path / "architecture", ignore=shutil.ignore_patterns("*.safetensors"))
    for out, folder in (("whole", base), ("alone", architecture)):
        train(
            out=out, base_model=str(folder), stage="pt", method={"type": "full"}, rows=rows_of("text"),
            hyperparameters={"initial_weights": "random", "max_steps": 1}, deploy={"mode": "merged"},
        )  # fmt: skip
    ours, others = (tmp_path / out / "merged" for out in ("alone", "whole"))
    assert (ours / "model.safetensors").read_bytes() == (others / "model.safetensors").read_bytes()
    manifest, (facts, _) = json.loads((tmp_path / "alone/manifest.json").read_text()), inspect_model(ours)
    assert (manifest["data"]["parameters"], manifest["modules"]) == (facts["parameters"], facts["modules"])


@pytest.mark.parametrize("name", ["lora+ and neftune", "qlora nf4", "freeze", "galore", "mod"])
def test_what_is_computed_again_in_the_backward_pass_is_what_was_kept_else(train: Run, name: str) -> None:
    def losses(out: str, again: bool) -> list[float]:
        events = train(out=out, **job(ROWS[name], gradient_checkpointing=again, precision="fp32", max_steps=5))
        return [event["loss"] for event in events if event["type"] == "step"]

    kept = losses("kept", False)
    assert kept[-1] < kept[0]
    assert losses("again", True) == pytest.approx(kept, rel=1e-3)
