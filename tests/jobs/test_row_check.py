"""A job that is bound to fail its data check is refused when it is posted, and by its dry run, with the trainer's own sentence."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from scipy.stats import binomtest
from transformers import AutoTokenizer

from app.datasets import rendering
from app.datasets.service import get as get_dataset
from app.datasets.service import rows_path
from app.jobs import row_check
from app.jobs.spec import JobSpec, TrainerSpec
from app.kit.database import DEFAULT_PROJECT
from tests.conftest import DEMO_BASE
from worker.renderer.judging import proves_more
from worker.trainer.data import dataset as trainer
from worker.trainer.failures import Failure

FILES = {"dataset": "rows", "validation": "validation_rows", "replay": "replay_rows"}
LONG = "long " * 90
# Refuses what is asked in German.
PICKY = (
    "{% for m in messages %}{% if 'Frage' in m.content %}{{ raise_exception('No German.') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Rows = list[dict[str, Any]]


def upload(client: httpx.Client, rows: Rows) -> str:
    rows = [row | {"id": secrets.token_hex(4)} for row in rows]  # else the same rows were the same dataset
    content = "\n".join(json.dumps(row) for row in rows).encode()
    return str(client.post("/datasets", content=content).raise_for_status().json()["id"])


def asked(text: str = "Question", answer: str = "Answer", count: int = 1) -> Rows:
    return [{"instruction": f"{text} {n}", "output": answer} for n in range(count)]


def prompts(text: str = "Question", count: int = 1, **fields: str) -> Rows:
    return [{"prompt": f"{text} {n}", **fields} for n in range(count)]


def of_trainer(body: dict[str, Any]) -> Failure | None:
    """What the trainer fails this job with before it trains."""
    ids = {FILES[name]: body[name] if name == "dataset" else body.get(name, {}).get("dataset") for name in FILES}
    paths = {file: str(rows_path(get_dataset(DEFAULT_PROJECT, id))) for file, id in ids.items() if id}
    tokenizer = AutoTokenizer.from_pretrained(DEMO_BASE)
    tokenizer.chat_template = body.get("chat_template") or tokenizer.chat_template
    spec = JobSpec.model_validate({name: value for name, value in body.items() if name in JobSpec.model_fields})
    whole = TrainerSpec(job="job", attempt=1, spec=spec, base_model=str(DEMO_BASE), chat_template=None, **paths)
    try:
        data = trainer.read(whole, tokenizer)
        trainer.check(data, spec.hyperparameters.max_length, spec.check.max_cut_share)
    except Failure as failure:
        return failure
    return None


CASES: dict[str, tuple[dict[str, Any], dict[str, Rows], str, str]] = {
    "no row has an answer within max_length": (
        {"hyperparameters": {"max_length": 16}}, {"dataset": asked(LONG, count=3)}, "no_trainable_rows", "dataset"
    ),
    "most answers lose their end": (
        {"hyperparameters": {"max_length": 64}}, {"dataset": asked(answer=LONG, count=3) + asked(count=4)},
        "data_check_failed", "hyperparameters.max_length",
    ),
    "the template refuses a row": (
        {"chat_template": PICKY}, {"dataset": asked(count=5) + asked("Frage")}, "template_refused", "dataset"
    ),
    "the template refuses a row to validate on": (
        {"chat_template": PICKY}, {"dataset": asked(count=5), "validation": asked("Frage")},
        "template_refused", "validation.dataset",
    ),
    "the template refuses a row of replay": (
        {"chat_template": PICKY}, {"dataset": asked(count=5), "replay": asked("Frage")}, "template_refused", "replay.dataset"
    ),
    "no row is left to validate on": (
        {"hyperparameters": {"max_length": 64}}, {"dataset": asked(count=5), "validation": asked(LONG)},
        "no_trainable_rows", "validation",
    ),
    "the one row is held out": (
        {"validation": {"fraction": 0.5}, "hyperparameters": {"max_length": 64}},
        {"dataset": asked(count=1) + asked(LONG, count=3)}, "no_trainable_rows", "dataset",
    ),
    "no prompt leaves room for an answer": (
        {"stage": "rl", "hyperparameters": {"reward": "json_valid", "max_length": 32, "max_new_tokens": 24}},
        {"dataset": prompts(LONG, 3)}, "no_trainable_rows", "dataset",
    ),
    "a row to validate on has no reference": (
        {"stage": "rl"}, {"dataset": prompts(count=2, reference="a"), "validation": prompts(count=2)},
        "data_check_failed", "hyperparameters.reward",
    ),
    "no text has anything to learn": ({"stage": "pt"}, {"dataset": [{"text": "."}]}, "", ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_the_trainer_would_refuse_is_refused_with_its_words(client: httpx.Client, case: str) -> None:
    body, files, code, param = CASES[case]
    named = {name: upload(client, rows) for name, rows in files.items()}
    body = {"base_model": "demo-base"} | body | {"dataset": named.pop("dataset")}
    for name, id in named.items():
        body[name] = body.get(name, {}) | {"dataset": id}
    failure = of_trainer(body)
    before = client.get("/jobs").json()
    answers = [client.post("/jobs", params={"dry_run": dry_run}, json=body) for dry_run in (True, False)]
    if failure is None:
        assert ([each.status_code for each in answers], code) == ([200, 202], "")
        return
    assert failure.code == code
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (422, code, param), error
        assert (error["message"], error["hint"]) == (failure.message, failure.hint)
    assert client.get("/jobs").json() == before


@pytest.fixture
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_check, "ROWS", 200)


@pytest.mark.usefixtures("small_samples")
def test_a_sample_refuses_what_it_proves(client: httpx.Client) -> None:
    rows = asked(answer=LONG, count=240) + asked(count=160)
    body = {"base_model": "demo-base", "dataset": upload(client, rows), "hyperparameters": {"max_length": 64}}
    error = client.post("/jobs", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("data_check_failed", "hyperparameters.max_length")
    failure = of_trainer(body)
    assert failure is not None
    assert "60.0% of the rows would lose an answer's end-of-turn token" in failure.message
    drawn = "of 200 rows drawn from all would lose an answer's end-of-turn token at max_length (64 tokens), more than "
    assert drawn + "check.max_cut_share (20.0%) allows" in error["message"]
    assert error["hint"] == failure.hint


@pytest.mark.usefixtures("small_samples")
def test_what_chance_may_explain_is_left_to_the_trainer(client: httpx.Client) -> None:
    rows = asked(answer=LONG, count=81) + asked(count=319)
    body = {"base_model": "demo-base", "dataset": upload(client, rows), "hyperparameters": {"max_length": 64}}
    assert client.post("/jobs", json=body).status_code == 202
    failure = of_trainer(body)
    assert failure is not None
    assert "20.2% of the rows" in failure.message


@pytest.mark.usefixtures("small_samples")
def test_a_row_of_a_sample_is_named_by_its_number_in_the_file(client: httpx.Client) -> None:
    rows = asked(count=200) + asked("Frage", count=200)
    body = {"base_model": "demo-base", "dataset": upload(client, rows), "chat_template": PICKY}
    error = client.post("/jobs", json=body).json()["error"]
    number = int(error["message"].partition("failed on row ")[2].partition(":")[0])
    assert (error["code"], 201 <= number < 210) == ("template_refused", True), error


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("drawn", [1, 20, 300, 2000])
def test_the_bound_is_that_of_clopper_and_pearson(share: float, drawn: int) -> None:
    for hits in {0, 1, drawn // 4, drawn // 2, drawn, *(round(share * drawn) + more for more in (1, 5, 20, 40))}:
        if hits <= drawn:
            expected = binomtest(hits, drawn, share, alternative="greater").pvalue < 0.01
            assert proves_more(hits, drawn, share) == expected, hits


@contextmanager
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All renderers are taken, and nobody waits long for one."""
    monkeypatch.setattr(rendering, "WAIT_SECONDS", 0.05)
    with ExitStack() as stack:
        while helper := rendering.RENDERERS.take(0.05):
            stack.callback(rendering.RENDERERS.give_back, helper)
        yield


def test_a_job_is_accepted_while_nobody_can_look_at_its_rows(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"base_model": "demo-base", "dataset": upload(client, asked(count=3))}
    with busy(monkeypatch):
        job = client.post("/jobs", json=body)
        plan = client.post("/jobs?dry_run=true", json=body)
    assert job.status_code == 202
    events = client.get(f"/jobs/{job.json()['id']}/events").json()["data"]
    assert [event["type"] for event in events] == ["created", "warning"]
    assert "busy" in events[1]["message"]
    assert (plan.status_code, plan.json()["error"]["code"]) == (503, "renderer_unavailable")


def test_rows_are_looked_at_once(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"base_model": "demo-base", "dataset": upload(client, asked(count=3))}
    bad = {"base_model": "demo-base", "dataset": upload(client, asked(LONG)), "hyperparameters": {"max_length": 16}}
    key = {"Idempotency-Key": secrets.token_hex(8)}
    first = client.post("/jobs", json=good, headers=key)
    refused = client.post("/jobs", json=bad)
    with busy(monkeypatch):
        assert client.post("/jobs", json=good, headers=key).json() == first.json()
        again = client.post("/jobs", json=good | {"hyperparameters": {"learning_rate": 0.5}, "priority": 3}).json()
        assert client.post("/jobs", json=bad).json() == refused.json()
    events = client.get(f"/jobs/{again['id']}/events").json()["data"]
    assert [event["type"] for event in events] == ["created"]
