"""Usage: sums by day, model and key, which concurrent writers do not lose. What engines count: tests/system/test_main_job.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import update

from app.jobs import attempts
from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.usage.service import Used, add
from app.usage.tables import Usage
from tests.datasets.helpers import jsonl, new_row


def use(model: str, key: str | None = None, **amounts: Any) -> None:
    with writing() as session:
        add(session, DEFAULT_PROJECT, key, model, Used(**amounts))


def listed(client: httpx.Client, **filters: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = client.get("/usage", params=filters).raise_for_status().json()["data"]
    return rows


def test_sums_are_by_model_and_key(client: httpx.Client) -> None:
    model = f"m-{uuid4().hex[:8]}"
    use(model, requests=1, input_tokens=10, output_tokens=5)
    use(model, requests=1, input_tokens=7, output_tokens=1)
    use(model, "key_a", trained_tokens=2**40, gpu_seconds=1.5)
    with_key, without = listed(client, model=model)
    assert {name: without[name] for name in ("key", "requests", "input_tokens", "output_tokens", "trained_tokens")} == {
        "key": None, "requests": 2, "input_tokens": 17, "output_tokens": 6, "trained_tokens": 0
    }  # fmt: skip
    assert (with_key["key"], with_key["trained_tokens"], with_key["gpu_seconds"]) == ("key_a", 2**40, 1.5)
    assert with_key["day"] == utc_now().date().isoformat()
    assert listed(client, key="key_a", model=model) == [with_key]


def test_writers_at_once_lose_nothing(client: httpx.Client) -> None:
    model = f"m-{uuid4().hex[:8]}"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: use(model, requests=1, output_tokens=3), range(64)))
    (row,) = listed(client, model=model)
    assert (row["requests"], row["output_tokens"]) == (64, 192)


def test_days_are_chosen_with_both_ends(client: httpx.Client) -> None:
    model, today = f"m-{uuid4().hex[:8]}", utc_now().date()
    for back in (2, 1, 0):
        use(model, requests=1 + back)
        with writing() as session:
            same = (Usage.model == model, Usage.day == today)
            session.execute(update(Usage).where(*same).values(day=today - timedelta(days=back)))
    days = [today - timedelta(days=back) for back in (0, 1, 2)]
    assert [row["day"] for row in listed(client, model=model)] == [day.isoformat() for day in days]
    for filters, expected in (
        ({"since": days[1]}, [1, 2]), ({"until": days[1]}, [2, 3]), ({"since": days[1], "until": days[1]}, [2])
    ):  # fmt: skip
        shown = listed(client, model=model, **{name: day.isoformat() for name, day in filters.items()})
        assert [row["requests"] for row in shown] == expected


def test_pages_follow_each_other_from_the_newest_day(client: httpx.Client) -> None:
    model, today = f"m-{uuid4().hex[:8]}", utc_now().date()
    days = [(key, back) for back in (1, 2, 0) for key in ("key_a", "key_b")]
    for key, back in days:
        use(model, key, requests=1)
        with writing() as session:
            same = (Usage.model == model, Usage.key_id == key, Usage.day == today)
            session.execute(update(Usage).where(*same).values(day=today - timedelta(days=back)))
    whole = listed(client, model=model)
    assert [row["day"] for row in whole] == [(today - timedelta(days=back)).isoformat() for back in (0, 0, 1, 1, 2, 2)]
    pages, after = list[dict[str, Any]](), dict[str, str]()
    while page := listed(client, model=model, limit=1, **after):
        pages += page
        after = {"after": page[-1]["id"]}
    assert pages == whole


@pytest.mark.parametrize("filters", [{"since": "yesterday"}, {"until": "2026-13-01"}, {"model": "x" * 65}])
def test_a_bad_filter_is_named(client: httpx.Client, filters: dict[str, str]) -> None:
    answer = client.get("/usage", params=filters)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, *filters)


def test_an_attempt_at_a_job_is_counted_when_it_ends(client: httpx.Client) -> None:
    dataset = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()["id"]
    body = {"base_model": "demo-base", "dataset": dataset, "name": f"run-{uuid4().hex[:8]}"}
    asked = client.post("/jobs", json=body).raise_for_status().json()
    job = attempts.claim("test")
    assert job is not None
    assert job.id == asked["id"]
    step = {"type": "step", "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 70, "epoch": 0.5}
    step |= {"tokens_per_second": 10.0, "eta_seconds": 1.0}
    started = {"type": "started", "rows": 1, "tokens": 9, "loss_tokens": 3, "total_steps": 2, "gpus": 2}
    with writing() as session:
        row = attempts.heartbeat(session, job)
        row.attempts[0].started_at = utc_now() - timedelta(seconds=100)
        attempts.record(session, row, [started, step | {"step": 1}, step | {"step": 2}])
    assert listed(client, model=asked["name"]) == []
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, job))
    (used,) = listed(client, model=asked["name"])
    assert used["trained_tokens"] == 140
    assert 200 <= used["gpu_seconds"] < 300
