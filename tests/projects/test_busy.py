"""What stays reachable while templates that never end hold the processes that render."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from app.datasets import rendering
from app.kit.database import DEFAULT_PROJECT, utc_now, writing
from app.models.service import find
from app.models.tables import Engine
from app.projects import service as projects
from tests.conftest import eventually, serving
from tests.datasets.helpers import CHAT, helpers, jsonl, refusal
from tests.projects.conftest import As, Keys

# Which database and queue are used makes no difference here.
pytestmark = pytest.mark.parametrize("backend", ["embedded"], indirect=True, scope="module")

# The sandbox bounds one range, and not what is inside of it.
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}<|im_end|>"
# More than the threads that answer requests.
MANY = 48

Flood = Callable[[httpx.Client, str], None]


def preview(client: httpx.Client, dataset: str, **body: object) -> httpx.Response:
    return client.post(f"/datasets/{dataset}/preview", json={"base_model": "demo-base", **body})


def dataset_of(client: httpx.Client) -> str:
    made = client.post("/datasets", content=jsonl([CHAT])).raise_for_status()
    return str(made.json()["id"])


@pytest.fixture
def flood() -> Iterator[Flood]:
    """Sends a project's key many previews that never end, and waits until they have the places that they may have."""
    pool, asked, datasets = (
        ThreadPoolExecutor(2 * MANY),
        list[Future[httpx.Response]](),
        list[tuple[httpx.Client, str]](),
    )

    def send(client: httpx.Client, project: str) -> None:
        id = dataset_of(client)
        datasets.append((client, id))
        asked.extend(pool.submit(preview, client, id, chat_template=ENDLESS) for _ in range(MANY))
        eventually(lambda: is_full(project), 30)

    yield send
    for client, id in datasets:  # those that have not begun end at once
        client.delete(f"/datasets/{id}").raise_for_status()

    def ended() -> bool:
        for process in helpers("worker.renderer"):
            process.kill()
        return all(each.done() for each in asked)

    eventually(ended, 60)
    pool.shutdown()
    assert {each.result().status_code for each in asked} <= {404, 503}


def is_full(project: str) -> bool:
    """Whether a project has all places that it can get."""
    helper = rendering.RENDERERS.take(0, owner=projects.get_project(project).id)
    if helper is not None:
        rendering.RENDERERS.give_back(helper)
    return helper is None


@pytest.fixture
def engine() -> Iterator[None]:
    """An engine that answers for the demo base."""
    from fastapi import FastAPI

    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer() -> dict[str, object]:
        return {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    with serving(app) as url:
        with writing() as session:
            base = find(session, DEFAULT_PROJECT, "demo-base")
            assert base is not None
            session.merge(
                Engine(
                    model_id=base.id, status="ready", url=url, generation=1, wanted_at=utc_now(), last_used_at=utc_now()
                )
            )
        yield


def test_authentication_and_chat_complete_while_every_preview_slot_is_blocked(
    keys: Keys, client_of: As, engine: None, flood: Flood
) -> None:
    flood(client_of(keys.ours["write"]), "ours")
    flood(client_of(keys.theirs["write"]), "theirs")
    assert rendering.RENDERERS.take(0) is None
    client = client_of(keys.ours["infer"])
    client.timeout = httpx.Timeout(10)
    ask = {"model": "demo-base", "messages": [{"role": "user", "content": "Hello"}]}
    for _ in range(5):
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/chat/completions", json=ask).status_code == 200
        refusal(client.get("/jobs"), 403, "forbidden_role")
        refusal(client_of("bsk_unknown").get("/jobs"), 401, "invalid_key")


def test_one_project_s_previews_leave_a_place_to_others(keys: Keys, client_of: As, flood: Flood) -> None:
    flood(client_of(keys.ours["write"]), "ours")
    theirs = client_of(keys.theirs["write"])
    assert preview(theirs, dataset_of(theirs)).status_code == 200


def test_a_template_that_never_ends_is_stopped_and_the_next_preview_works(
    keys: Keys, client_of: As, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(keys.ours["write"])
    dataset = dataset_of(client)
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "QUICK", rendering.Bounds(0.3, leaving=0))
        error = refusal(preview(client, dataset, chat_template=ENDLESS), 422, "render_timeout")
    assert error["param"] == "chat_template"
    assert "nested loops" in error["hint"]
    assert preview(client, dataset).status_code == 200


def test_a_check_that_takes_too_long_is_stopped(keys: Keys, client_of: As, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(keys.ours["write"])
    monkeypatch.setitem(rendering.BOUNDS, "check", rendering.Bounds(0.3, leaving=1))
    body = {"base_model": "demo-base", "chat_template": ENDLESS}
    refusal(client.post(f"/datasets/{dataset_of(client)}/check", json=body), 422, "render_timeout")


def test_a_check_leaves_places_to_previews(keys: Keys) -> None:
    """Both of all places, and of those that one project may have."""
    checks = [rendering.RENDERERS.take(0, rendering.BOUNDS["check"].leaving, owner="ours") for _ in range(2)]
    preview = rendering.RENDERERS.take(0, owner="ours")
    try:
        assert [each is None for each in checks] == [False, True]
        assert preview is not None
        assert rendering.RENDERERS.take(0, owner="ours") is None
    finally:
        for each in (checks[0], preview):
            if each is not None:
                rendering.RENDERERS.give_back(each)
