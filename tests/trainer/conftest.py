"""A small random model with the demo's tokenizer, and runs of the trainer inside the test's process."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from app.datasets.canonical import SCHEMAS
from app.jobs.spec import TrainerSpec
from tests.conftest import DEMO_BASE
from worker.trainer.data.conversation import Message
from worker.trainer.run import run
from worker.trainer.stopping import StopSignal

Event = dict[str, Any]
Run = Callable[..., list[Event]]


def chat(*turns: str, system: str | None = None) -> list[Message]:
    """user, assistant, user, ... with an optional system message before them."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


def write_rows(path: Path, rows: list[list[Message]]) -> str:
    pq.write_table(pa.Table.from_pylist([{"messages": messages} for messages in rows], SCHEMAS["chat"]), path)
    return str(path)


def scores_as_told(out: Path) -> None:
    """Plain transformers gives the text of a reward model's proof the score that the trainer told."""
    proof = json.loads((out / "proof.json").read_text())
    scorer = AutoModelForSequenceClassification.from_pretrained(out / "merged").eval()
    with torch.no_grad():
        score = scorer(input_ids=torch.tensor([proof["token_ids"]])).logits.item()
    assert score == pytest.approx(proof["score"], abs=0.1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_BASE)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def counting(path: Path, first: int = 0) -> str:
    """42 conversations of different lengths, about the numbers from `first` on."""
    numbers = range(first, first + 42)
    return write_rows(path, [chat(f"Count {'on ' * (i % 9)}to {i}.", f"It is {i}.") for i in numbers])


def contrary(path: Path) -> str:
    """Other answers to such questions: whoever learns those soon gives these less and less."""
    return write_rows(path, [chat(f"Count to {i}.", f"No {i}") for i in range(8)])


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return counting(tmp_path / "rows.parquet")


@pytest.fixture(scope="session")
def taught(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base after some lessons in counting: its answers are sentences, of which some are better than others."""
    folder = tmp_path_factory.mktemp("taught")
    settings = {"epochs": 10, "learning_rate": 0.003, "batch_size": 8}
    spec = {"method": {"type": "full"}, "hyperparameters": settings, "deploy": {"mode": "merged"}}
    paths = {"base_model": str(base), "chat_template": None, "rows": counting(folder / "rows.parquet"), "threads": 1}
    before = signal.getsignal(signal.SIGTERM)
    run(TrainerSpec.model_validate({"job": "job_0", "attempt": 1, "spec": spec, **paths}), folder, lambda *_, **__: None,
        StopSignal())  # fmt: skip
    signal.signal(signal.SIGTERM, before)
    return folder / "merged"


@pytest.fixture
def base_of(base: Path, taught: Path) -> Callable[[str], Path]:
    """The model that a stage begins with: what is rewarded must come about now and then."""
    return lambda stage: taught if stage == "rl" else base


@pytest.fixture
def rows_of(tmp_path: Path) -> Callable[..., str]:
    """Rows of any kind that a small model can learn from: good answers count, bad ones do not. They are about the numbers from
    `first` on."""

    def make(kind: str, first: int = 0) -> str:
        path = tmp_path / f"{kind}-{first}.parquet"
        if kind == "chat":
            return counting(path, first)
        numbers = range(first, first + 40)
        asked = [chat(f"Count {'on ' * (i % 5)}to {i}.") for i in numbers]
        good, bad = (
            [{"role": "assistant", "content": text.format(i)} for i in numbers] for text in ("It is {}.", "No {}")
        )
        made: dict[str, list[dict[str, Any]]] = {
            "text": [{"text": f"Count {'on ' * (i % 9)}to {i}: it is {i}. " * (1 + i % 3)} for i in range(first, first + 42)],
            "preference": [{"messages": m, "chosen": [c], "rejected": [r]} for m, c, r in zip(asked, good, bad, strict=True)],
            "prompts": [{"messages": m, "reference": str(i)} for i, m in zip(numbers, asked, strict=True)],
            "labels": [{"messages": [*m, b if i % 2 else a], "label": i % 2 == 0}
                       for i, (m, a, b) in enumerate(zip(asked, good, bad, strict=True))],
        }  # fmt: skip
        pq.write_table(pa.Table.from_pylist(made[kind], SCHEMAS[kind]), path)
        return str(path)

    return make


@pytest.fixture
def make_spec(base: Path, rows: str) -> Callable[..., TrainerSpec]:
    def make(**changes: Any) -> TrainerSpec:
        top = {key: changes.pop(key) for key in list(changes) if key in TrainerSpec.model_fields and key != "spec"}
        settings = {"epochs": 1, "learning_rate": 0.01, "batch_size": 8} | changes.pop("hyperparameters", {})
        # The scorecard has tests of its own, and would cost the others more than their training.
        check = {"scorecard": False} | changes.pop("check", {})
        spec = {"hyperparameters": settings, "check": check, **changes}
        paths = {"base_model": str(base), "chat_template": None, "rows": rows, "threads": 1}
        return TrainerSpec.model_validate({"job": "job_1", "attempt": 1, "spec": spec, **paths, **top})

    return make


@pytest.fixture
def train(make_spec: Callable[..., TrainerSpec], tmp_path: Path) -> Iterator[Run]:
    """`train(out="name", **spec)` runs the trainer into a folder below `tmp_path` and returns its events."""
    before = signal.getsignal(signal.SIGTERM)

    def start(out: str = "out", **spec: Any) -> list[Event]:
        events: list[Event] = []
        run(
            make_spec(**spec),
            tmp_path / out,
            lambda type, **fields: events.append({"type": type, **fields}),
            StopSignal(),
        )
        sent: list[Event] = json.loads(json.dumps(events))
        return sent

    yield start
    signal.signal(signal.SIGTERM, before)
