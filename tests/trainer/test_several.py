"""A run of several processes is the run of one: the same rows a step, the same losses, one voice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from app.jobs.combinations import STAGES as KINDS
from app.jobs.spec import JobSpec, TrainerSpec
from tests.trainer.conftest import Run
from tests.trainer.rows_of_the_table import METHODS, STAGES, job
from tests.trainer.several import Event, Pair, Trouble
from worker.trainer.checkpoints import read_state

Make = Callable[..., TrainerSpec]

# All that may have several GPUs.
SEVERAL: dict[str, dict[str, Any]] = {
    **{name: STAGES[name] for name in ("sft", "pt", "dpo", "kto", "rm")},
    **{name: METHODS[name] for name in ("qlora nf4", "full", "freeze", "mod", "gradient checkpointing")},
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    both = Pair()
    yield both
    both.end()


def measured(events: list[Event]) -> list[Event]:
    unlike = ("seconds", "tokens_per_second", "eta_seconds", "type")
    return [
        {name: value for name, value in event.items() if name not in unlike}
        for event in events
        if event["type"] in ("step", "validation")
    ]


@pytest.mark.parametrize("name", SEVERAL)
def test_two_processes_learn_what_one_does(
    train: Run, make_spec: Make, rows_of: Callable[[str], str], pair: Pair, tmp_path: Path, name: str
) -> None:
    changes = job(SEVERAL[name], epochs=1, precision="fp32")  # in which rounding is small
    changes["method"] = changes.get("method", {}) | ({"dropout": 0.0} if "dropout" in changes.get("method", {}) else {})
    rows = rows_of(KINDS[JobSpec.model_validate(changes).stage].rows)
    # An epoch's last step, and the validation, are of few rows.
    changes |= {"rows": rows, "validation": {"fraction": 0.02, "every": 3}}
    one = train(out="one", **changes)
    two, silent = pair.do(make_spec(**changes), tmp_path / "two")
    assert [event["type"] for event in two] == [event["type"] for event in one]
    assert len(measured(one)) > 5
    for alone, shared in zip(measured(one), measured(two), strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert measured(silent) == measured(two)
    assert "finished" not in [event["type"] for event in silent]
    weights = [load_file(next((tmp_path / out).glob("*/*.safetensors"))) for out in ("one", "two")]
    assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert manifest["made_with"]["processes"] == 2


def test_where_memory_ends_in_one_process_all_halve_their_micro_batches(
    make_spec: Make, rows_of: Callable[[str], str], pair: Pair, tmp_path: Path
) -> None:
    """In the midst of a sum that the others wait for, too."""
    changes = {"stage": "kto", "rows": rows_of("labels"), "hyperparameters": {"checkpoint_every": 2}}
    spec = make_spec(**changes)
    expected, _ = pair.do(spec, tmp_path / "small", Trouble(tokens=128))
    for rank in (0, 1):
        out = tmp_path / f"limited-{rank}"
        found, _ = pair.do(spec, out, Trouble(rank, memory=128, tokens=512))
        assert measured(found) == measured(expected)
        assert [event for event in found if event["type"] == "warning"][-1]["message"].endswith("It goes on with 128.")
        assert read_state(out / "checkpoints/step-2").micro_batch_tokens == 128


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_that_one_was_asked_for_ends_all_after_the_same_step(
    make_spec: Make, pair: Pair, tmp_path: Path, rank: int
) -> None:
    spec = make_spec(validation={"fraction": 0.1, "every": 1})
    for said in pair.do(spec, tmp_path / "out", Trouble(rank, stop_after=2)):
        types = [event["type"] for event in said]
        assert types[-1] == "stopped"
        assert types.count("step") == 2
    assert (tmp_path / "out/checkpoints/step-2/rank-1/rng_state.pth").is_file()


SHARDED: dict[str, dict[str, Any]] = {
    "sft": METHODS["full"],
    "pt": METHODS["full"] | {"stage": "pt"},
    "gradient checkpointing": {
        "method": {"type": "full"},
        "hyperparameters": METHODS["full"]["hyperparameters"] | {"gradient_checkpointing": True},
    },
}


@pytest.mark.parametrize("name", SHARDED)
def test_what_shares_out_its_weights_learns_what_one_process_does(
    train: Run, make_spec: Make, rows_of: Callable[[str], str], pair: Pair, tmp_path: Path, name: str
) -> None:
    changes = job(SHARDED[name], epochs=1, checkpoint_every=3, precision="fp32")
    changes |= {"rows": rows_of(KINDS[JobSpec.model_validate(changes).stage].rows), "check": {"scorecard": True}}
    changes |= {"validation": {"fraction": 0.02, "every": 3, "keep": "best"}}
    one = train(out="one", **changes)
    changes["hyperparameters"] = changes["hyperparameters"] | {"sharding": "full"}
    spec = make_spec(**changes)
    two, silent = pair.do(spec, tmp_path / "two")
    assert [event["type"] for event in two] == [event["type"] for event in one]
    for alone, shared in zip(measured(one), measured(two), strict=True):
        assert shared == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert measured(silent) == measured(two)
    weights = [load_file(tmp_path / out / "merged/model.safetensors") for out in ("one", "two")]
    assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    # It goes on exactly, and what it wrote is whole: one process alone goes on from it, too.
    resumed = spec.model_copy(update={"resume_from": str(tmp_path / "two/checkpoints/step-3")})
    again, _ = pair.do(resumed, tmp_path / "again")
    assert measured(again) == [event for event in measured(two) if event["step"] > 3]
    assert_close(load_file(tmp_path / "again/merged/model.safetensors"), weights[1], rtol=0, atol=0)  # to the bit
    alone = train(out="alone", resume_from=str(tmp_path / "two/checkpoints/step-3"), **changes)
    for one_process, shared in zip(measured(alone), measured(again), strict=True):
        assert shared == pytest.approx(one_process, rel=1e-4, abs=1e-5)
    assert_close(load_file(tmp_path / "alone/merged/model.safetensors"), weights[1], rtol=1e-3, atol=1e-4)
