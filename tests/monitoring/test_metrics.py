"""GET /metrics: Prometheus can read it, it says what the database says, and no counter ever falls."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.jobs import attempts
from app.jobs.tables import Job
from app.kit.database import utc_now, writing
from app.monitoring.service import QUESTIONS
from app.projects import service as projects
from app.projects.removal import delete_project
from tests.conftest import eventually
from tests.jobs.conftest import dataset
from tests.jobs.test_lifecycle import job

__all__ = ["dataset", "job"]

STEP = {"type": "step", "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0, "tokens": 7, "epoch": 0.5, "seconds": 0.25}
STEP |= {"tokens_per_second": 10.0, "eta_seconds": 1.0}


def scrape(client: httpx.Client) -> dict[str, float]:
    """Every sample by its name and the values of its labels."""
    answer = client.get("/metrics").raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    found = {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def changes(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What the counters have counted between two scrapes."""
    counters = {name for name in after if name.split()[0].endswith("_total")}
    return {name: rose for name in counters if (rose := after[name] - before.get(name, 0.0))}


def claim(*steps: int) -> Job:
    """The queued job, under an attempt that made these steps."""
    claimed = attempts.claim("here")
    assert claimed is not None
    with writing() as session:
        attempts.record(session, attempts.hold(session, claimed), [STEP | {"step": step} for step in steps])
    return claimed


def trained(steps: int) -> dict[str, float]:
    return {
        "burnish_training_steps_total": steps,
        "burnish_training_step_seconds_total": 0.25 * steps,
        "burnish_training_tokens_total": 7 * steps,
    }


def test_every_metric_of_the_table_is_there_and_told(client: httpx.Client, job: dict[str, Any]) -> None:
    families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
    told = {name: metric for question in QUESTIONS for name, metric, _ in question.metrics}
    assert families.keys() == told.keys() | {"burnish_http_request_duration_seconds"}
    for name, family in families.items():
        assert family.type in (told[name].__name__.lower() if name in told else "histogram")
        assert family.documentation.endswith(".")


def test_requests_are_counted_by_method_route_and_status(client: httpx.Client, job: dict[str, Any]) -> None:
    count = "burnish_http_request_duration_seconds_count"
    before = scrape(client)
    client.get(f"/jobs/{job['id']}").raise_for_status()
    client.get("/jobs/job_none")
    client.get("/nothing/at/all")
    client.request("PROPFIND", "/jobs")
    client.post("/jobs", json={})
    labels = ["GET /jobs/{id} 200", "GET /jobs/{id} 404", "GET none 404", "other /jobs 405", "POST /jobs 422"]
    expected = {f"{count} {each}": 1.0 for each in labels}

    def counted() -> bool:  # which a request is when its answer has been sent
        after = scrape(client)
        rose = {name: after[name] - before.get(name, 0.0) for name in after if name.startswith(count)}
        return {name: by for name, by in rose.items() if by and "/metrics" not in name} == expected

    eventually(counted, 10, f"the counts {expected}")


def test_jobs_are_counted_by_status_and_the_queue_has_an_age(client: httpx.Client, job: dict[str, Any]) -> None:
    found = scrape(client)
    assert (found["burnish_jobs queued"], found["burnish_jobs running"], found["burnish_jobs paused"]) == (1, 0, 0)
    with writing() as session:
        session.execute(update(Job).where(Job.id == job["id"]).values(queued_at=utc_now().replace(year=2020)))
    assert scrape(client)["burnish_queue_oldest_job_age_seconds"] > 365 * 24 * 3600
    client.post(f"/jobs/{job['id']}/pause").raise_for_status()
    assert scrape(client)["burnish_queue_oldest_job_age_seconds"] == 0
    client.post(f"/jobs/{job['id']}/resume").raise_for_status()
    assert scrape(client)["burnish_queue_oldest_job_age_seconds"] < 3600
    assert found["burnish_datasets"] >= 1
    assert found["burnish_files dataset"] >= 1
    assert found["burnish_file_bytes dataset"] > 100
    assert found["burnish_models base ready"] == 1


def test_what_is_trained_counts_at_once_and_once(client: httpx.Client, job: dict[str, Any]) -> None:
    before = scrape(client)
    claimed = claim(1, 2, 3)
    assert changes(before, scrape(client)) == trained(3)
    with writing() as session:
        attempts.lose(session, attempts.hold(session, claimed), "trainer_died", "It died.")
    assert changes(before, scrape(client)) == trained(3) | {"burnish_attempts_total lost": 1}
    claimed = claim(4)
    with writing() as session:
        attempts.fail(session, attempts.hold(session, claimed), "out_of_memory", "The GPU is full.")
    counted = trained(4) | {"burnish_attempts_total lost": 1, "burnish_attempts_total failed": 1}
    counted |= {"burnish_failed_jobs_total out_of_memory": 1}
    assert changes(before, scrape(client)) == counted


def test_no_counter_falls_when_what_it_counted_is_deleted(client: httpx.Client, job: dict[str, Any]) -> None:
    before = scrape(client)
    claimed = claim(1, 2)
    with writing() as session:
        attempts.fail(session, attempts.hold(session, claimed), "trainer_error", "It broke.")
    counted = changes(before, scrape(client))
    client.delete(f"/jobs/{job['id']}").raise_for_status()
    assert changes(before, scrape(client)) == counted


def test_what_runs_when_its_project_is_deleted_stays_counted(client: httpx.Client, job: dict[str, Any]) -> None:
    project = projects.create_project("passing")
    with writing() as session:
        session.execute(update(Job).where(Job.id == job["id"]).values(project_id=project.id))
    before = scrape(client)
    claim(1, 2)
    delete_project(project.name)
    assert changes(before, scrape(client)) == trained(2) | {"burnish_attempts_total cancelled": 1}


@pytest.mark.parametrize(("role", "status"), [("admin", 200), ("write", 403)])
def test_where_there_are_keys_it_needs_an_admin_s(client: httpx.Client, role: str, status: int) -> None:
    admin = projects.create_key("default", "admin", "first", None)
    key = projects.create_key("default", role, "prometheus", None)
    try:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": f"Bearer {key[1]}"}).status_code == status
    finally:
        with writing() as session:
            for each in (admin[0], key[0]):
                session.delete(session.merge(each))
