"""A service with keys: an admin's, and two projects with one key of each role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest

from app.kit.database import writing
from app.kit.ids import new_id
from app.models.service import find
from app.models.tables import Model
from app.projects import service as projects
from tests.datasets.helpers import jsonl, new_row

As = Callable[[str | None], httpx.Client]


@dataclass(frozen=True)
class Keys:
    """Keys by role, of an admin and of two projects."""

    admin: str
    ours: dict[str, str]
    theirs: dict[str, str]


@pytest.fixture(scope="module")
def keys(service: str) -> Keys:
    admin = projects.create_key("default", "admin", "first", None)[1]
    made = []
    for name in ("ours", "theirs"):
        projects.create_project(name)
        made.append({role: projects.create_key(name, role, role, None)[1] for role in ("write", "read", "infer")})
    return Keys(admin, *made)


@pytest.fixture(scope="module")
def client_of(service: str) -> As:
    """A client that sends a key."""

    def client(key: str | None) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=service, headers=headers, timeout=60)

    return client


@dataclass(frozen=True)
class Owned:
    """What a project owns: a dataset and its report, a job, a fine-tune, a secret, a webhook."""

    dataset: str
    report: str
    job: str
    model: str
    secret: str
    webhook: str

    def of(self, path: str) -> str:
        """The one of these that a route's path is about."""
        noun = path.split("/")[2 if path.startswith("/v1") else 1]
        owned = {"datasets": self.dataset, "reports": self.report, "jobs": self.job, "models": self.model}
        return (owned | {"secrets": self.secret, "webhooks": self.webhook})[noun]


def fine_tune(project: str, name: str, source: str = "nowhere", location: str = "nowhere/adapter") -> str:
    """The id of a fine-tune's row, ready, of the project of this name."""
    project_id = projects.get_project(project).id
    with writing() as session:
        base = find(session, project_id, "demo-base")
        assert base is not None
        model = Model(id=new_id("model"), project_id=project_id, name=name, kind="adapter", status="ready")
        model.source, model.base_model_id, model.location = source, base.id, location
        session.add(model)
        return model.id


@pytest.fixture(scope="module")
def theirs(keys: Keys, client_of: As) -> Owned:
    client = client_of(keys.theirs["write"])
    dataset = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()
    job = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset["id"]}).raise_for_status().json()
    model = new_id("tune")
    fine_tune("theirs", model, source=job["id"])
    client.put("/secrets/their-token", json={"value": "theirs"}).raise_for_status()
    hook = client.post("/webhooks", json={"url": "https://example.org/theirs"}).raise_for_status().json()["id"]
    return Owned(dataset["id"], dataset["report"], job["id"], model, "their-token", hook)
