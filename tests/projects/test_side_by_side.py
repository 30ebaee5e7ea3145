"""Two projects driven at random side by side: nothing of one ever shows in the other, not even that it is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

from app.kit.ids import new_id
from app.projects import service as projects
from app.settings import get_settings
from tests.datasets.helpers import jsonl
from tests.projects.conftest import As, Keys, fine_tune
from tests.projects.test_access import LISTS, OBJECTS

# Prefix of an id, as routes of `OBJECTS` want it in their paths.
NOUNS = {
    "ds": "datasets",
    "rep": "reports",
    "job": "jobs",
    "model": "models",
    "tune": "models",
    "secret": "secrets",
    "hook": "webhooks",
}
# A model that there is is in use or not served, which is said only to those that see it.
BODIES: dict[str, Any] = {
    "/datasets/{id}/preview": {"base_model": "demo-base"},
    "/datasets/{id}/check": {"base_model": "demo-base"},
    "/models/{name}/score": {
        "conversations": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]]
    },
    "/webhooks/{id}": {"enabled": False},
}


@dataclass
class Side:
    """A project as its client sees it: what it made, newest last, and all that tells of it."""

    name: str
    client: httpx.Client
    made: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def own(self, noun: str) -> list[str]:
        return [each for each in self.made if NOUNS[each.split("_")[0]] == noun]

    def add(self, id: str) -> None:
        if id not in self.made:
            self.made.append(id)


def upload(side: Side, number: int) -> None:
    """The same few files in both projects, so that bytes are shared."""
    rows = [{"instruction": f"question {number}", "output": "answer"}]
    answer = side.client.post("/datasets", content=jsonl(rows), headers={"Idempotency-Key": f"upload-{number}"})
    if answer.is_success:
        made = answer.json()
        if side.client.get(f"/datasets/{made['id']}").is_success:  # not the answer of one that was deleted since
            side.add(made["id"])
            side.add(made["report"])


def refused(side: Side, number: int) -> None:
    side.add(side.client.post("/datasets", content=b"no rows %d" % number).json()["error"]["report"])


def start(side: Side, number: int) -> None:
    upload(side, number)
    if datasets := side.own("datasets"):
        body = {"base_model": "demo-base", "dataset": datasets[number % len(datasets)], "name": f"run-{number}"}
        answer = side.client.post("/jobs", json=body)
        if answer.is_success:
            side.add(answer.json()["id"])


def cancel(side: Side, number: int) -> None:
    if jobs := side.own("jobs"):
        side.client.post(f"/jobs/{jobs[number % len(jobs)]}/cancel")


def remove(side: Side, number: int) -> None:
    if datasets := side.own("datasets"):
        dataset = datasets[number % len(datasets)]
        report = side.client.get(f"/datasets/{dataset}").json()["report"]
        if side.client.delete(f"/datasets/{dataset}").is_success:
            for each in (dataset, report):
                side.made.remove(each)
                side.gone.append(each)


def tune(side: Side, number: int) -> None:
    name = new_id("tune")
    side.add(fine_tune(side.name, name))
    side.add(name)


def keep(side: Side, number: int) -> None:
    name = f"secret_{side.name}.{number}"
    side.client.put(f"/secrets/{name}", json={"value": "v"}).raise_for_status()
    side.add(name)


def hook(side: Side, number: int) -> None:
    side.add(side.client.post("/webhooks", json={"url": f"https://example.org/{number}"}).json()["id"])


DEEDS: list[Callable[[Side, int], None]] = [upload, refused, start, cancel, remove, tune, keep, hook]
STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(DEEDS), st.integers(0, 3)), min_size=4, max_size=14)


def look(side: Side, other: Side) -> None:
    """Every list of one project, from every place of it and of the other's."""
    for path in LISTS:
        marks: list[str | None] = [None, *other.made[-2:], *side.made[-1:]]
        for after in marks if not path.startswith("/v1") else [None]:
            listed = side.client.get(path, params={"limit": 1000} | ({"after": after} if after else {}))
            assert listed.status_code in (200, 422), listed.text
            assert not any(each in listed.text for each in other.made + other.gone if each != after)
            if after is None and not path.startswith("/v1"):  # which lists names alone
                noun = path.strip("/").split("/")[-1]
                shown = {each for each in side.own(noun) if each in listed.text}
                assert shown == set(side.own(noun)), f"{path} does not show all of its own"


def ask(side: Side, other: Side, number: int) -> None:
    """Something of the other's is answered as something that there never was."""
    for method, path in OBJECTS:
        noun = path.split("/")[2 if path.startswith("/v1") else 1]
        theirs = other.own(noun)
        if not theirs or (method == "DELETE" and path.count("{") > 1):
            continue
        there, nothing = theirs[number % len(theirs)], new_id(theirs[0].split("_")[0])
        answers = [
            side.client.request(method, path.replace("{id}", each).replace("{name}", each), json=BODIES.get(path))
            for each in (there, nothing)
        ]
        assert answers[0].status_code == answers[1].status_code == 404, (method, path, answers[0].text)
        assert answers[0].text.replace(there, nothing) == answers[1].text
    for body in ({"model": name, "messages": []} for name in other.own("models")[-1:]):
        assert side.client.post("/v1/chat/completions", json=body).status_code == 404
        assert side.client.post("/v1/completions", json=body | {"prompt": "a"}).status_code == 404


def test_nothing_of_one_project_shows_in_the_other(keys: Keys, client_of: As) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "engine_wait_seconds", 0.1)

        @hypothesis.given(steps=STEPS, number=st.integers(0, 7))
        @hypothesis.settings(
            max_examples=12,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def side_by_side(steps: list[tuple[bool, Callable[[Side, int], None], int]], number: int) -> None:
            sides = []
            for _ in range(2):
                name = f"side-{uuid4().hex[:12]}"
                projects.create_project(name)
                sides.append(Side(name, client_of(projects.create_key(name, "write", "w", None)[1])))
            for second, deed, which in steps:
                deed(sides[second], which)
            for side, other in (sides, sides[::-1]):
                look(side, other)
                ask(side, other, number)
            for side in sides:
                side.client.close()

        side_by_side()
