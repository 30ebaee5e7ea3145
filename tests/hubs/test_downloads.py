"""A model from a hub: it becomes ready, goes on where it stopped, or says why it cannot."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.kit import sealing
from app.kit.database import DEFAULT_PROJECT, database_now, reading, writing
from app.models import service
from app.models.inspection import inspect_model
from app.models.schemas import model_out
from app.models.tables import Model
from app.secrets import service as kept
from app.settings import get_settings
from tests.conftest import eventually
from tests.hubs.conftest import UNWANTED, WEIGHTS, Attempt, children, download, register, stored, until_held
from tests.hubs.server import COMMIT, GATED, PICKLED, REPOSITORY, TOKEN, Hub
from worker import downloads, preparing


def test_it_becomes_ready_and_shows_its_progress_on_the_way(
    scheme: str, hub: Hub, house: Path, base_model: Path
) -> None:
    hub.held.add(WEIGHTS)
    model = register(f"{scheme}://{REPOSITORY}")
    with Attempt() as attempt:
        until_held(hub)
        eventually(lambda: (stored(model).progress or {}).get("bytes", 0) > 300_000, 10, "progress")
        progress = model_out(stored(model)).progress
        hub.release.set()
        attempt.finish()
    total = sum(len(data) for name, data in hub.files.items() if name not in UNWANTED)
    assert progress is not None
    assert progress.total_bytes == total > progress.bytes

    ready, (facts, template) = stored(model), inspect_model(base_model)
    assert ready.status == "ready"
    assert ready.facts == facts | {"revision": COMMIT}
    assert ready.chat_template == template is not None
    assert (ready.progress, ready.error, ready.lease_expires_at) == (None, None, None)
    location = Path(str(ready.location))
    assert location.is_relative_to(house / {"hf": "hf", "modelscope": "modelscope"}[scheme])
    assert (location / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert not {name for name, _ in hub.fetched} & set(UNWANTED)


def test_a_revision_can_be_named(scheme: str, house: Path) -> None:
    model = register(f"{scheme}://{REPOSITORY}@v1")
    download()
    assert stored(model).status == "ready"


def test_a_connection_that_breaks_goes_on_in_the_middle_of_the_file(scheme: str, hub: Hub, house: Path) -> None:
    # Large, because Hugging Face's library keeps what it got in pieces of 10 MiB.
    hub.files["large.json"] = bytes(24 * 2**20)
    hub.cut.add("large.json")
    model = register(f"{scheme}://{REPOSITORY}")
    download()
    assert stored(model).status == "ready"
    first, second = hub.ranges("large.json")
    assert first is None
    assert second is not None
    assert Path(str(stored(model).location), "large.json").read_bytes() == hub.files["large.json"]


def test_a_killed_download_is_tried_again_and_keeps_what_is_there(
    scheme: str, hub: Hub, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "BACK_OFF_LEASES", (0, 0))
    hub.held.add(WEIGHTS)
    model = register(f"{scheme}://{REPOSITORY}")
    with Attempt() as attempt:
        until_held(hub)
        eventually(lambda: (stored(model).progress or {}).get("bytes", 0) > 300_000, 10, "progress")
        [child] = children()
        child.kill()
        attempt.finish()
    assert stored(model).status == "downloading"
    hub.release.set()
    download()
    assert stored(model).status == "ready"
    assert stored(model).attempt == 2
    assert {name: len(hub.ranges(name)) for name, _ in hub.fetched if name != WEIGHTS} == {
        name: 1 for name in hub.files if name not in UNWANTED and name != WEIGHTS
    }
    # ModelScope's library goes on in the middle of a file; Hugging Face's begins the file anew.
    first, second = hub.ranges(WEIGHTS)
    assert first is None
    assert (second is not None) == (scheme == "modelscope")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("acme/nothing", "source_not_found"),
        (f"{REPOSITORY}@nothing", "source_not_found"),
        (GATED, "access_denied"),
        (PICKLED, "no_safetensors"),
    ],
)
def test_what_cannot_be_read_fails_with_the_cause(scheme: str, path: str, code: str, house: Path) -> None:
    model = register(f"{scheme}://{path}")
    download()
    failed = stored(model)
    assert failed.status == "failed"
    assert failed.error is not None
    assert failed.error["code"] == code
    assert path in failed.error["message"]
    assert failed.error["hint"]


def test_a_hub_that_cannot_be_reached_is_tried_again_and_then_given_up(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "BACK_OFF_LEASES", (0, 0))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = register(f"hf://{REPOSITORY}")
    for _ in range(2):
        download()
        assert stored(model).status == "downloading"
    download()
    failed = model_out(stored(model))
    assert (failed.status, stored(model).attempt) == ("failed", 3)
    assert failed.error is not None
    assert failed.error.code == "hub_unreachable"


def test_a_try_that_failed_is_not_repeated_before_its_back_off_has_passed(
    house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    model = register(f"hf://{REPOSITORY}")
    download()
    assert is_waiting(model) is False
    assert is_waiting(model, later=timedelta(seconds=31)) is True


def test_where_nothing_waits_nothing_is_done(house: Path) -> None:
    assert downloads.download_next(threading.Event()) is False


def test_a_model_is_held_for_as_long_as_its_worker_is_heard_of(hub: Hub, house: Path) -> None:
    hub.held.add(WEIGHTS)
    model = register(f"hf://{REPOSITORY}")
    with Attempt():
        until_held(hub)
        assert is_waiting(model) is False
        assert is_waiting(model, later=timedelta(seconds=31)) is True


def test_a_worker_that_ends_leaves_the_model_to_another_at_once(hub: Hub, house: Path) -> None:
    hub.held.add(WEIGHTS)
    model = register(f"hf://{REPOSITORY}")
    with Attempt() as attempt:
        until_held(hub)
        attempt.shutting_down.set()
        attempt.finish()
    assert stored(model).status == "downloading"
    assert is_waiting(model) is True


def test_a_model_that_is_deleted_ends_its_download(hub: Hub, house: Path) -> None:
    hub.held.add(WEIGHTS)
    model = register(f"hf://{REPOSITORY}")
    with Attempt() as attempt:
        until_held(hub)
        service.delete(DEFAULT_PROJECT, model.name)
        attempt.finish()
    with reading() as session:
        assert session.scalars(select(Model)).all() == []


def test_an_attempt_that_was_taken_over_writes_nothing_more(hub: Hub, house: Path) -> None:
    hub.held.add(WEIGHTS)
    model = register(f"hf://{REPOSITORY}")
    with Attempt() as attempt:
        until_held(hub)
        with writing() as session:
            session.get_one(Model, model.id).attempt += 1
        attempt.finish()
    assert stored(model).status == "downloading"


def is_waiting(model: Model, later: timedelta = timedelta()) -> bool:
    with reading() as session:
        now = database_now(session) + later
        return (
            session.scalar(select(Model.id).where(preparing.waiting(now, "downloading"), Model.id == model.id))
            is not None
        )


def test_a_project_s_token_opens_what_is_gated_and_is_the_download_s_alone(
    scheme: str, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = list[dict[str, str]]()
    spawn = preparing.spawn

    def watch(*arguments: Any, **options: Any) -> Any:
        started.append(options["env"])
        return spawn(*arguments, **options)

    monkeypatch.setattr(preparing, "spawn", watch)
    name, variable = {"hf": ("hf_token", "HF_TOKEN"), "modelscope": ("modelscope_token", "MODELSCOPE_API_TOKEN")}[
        scheme
    ]
    kept.put(DEFAULT_PROJECT, name, TOKEN)
    model = register(f"{scheme}://{GATED}")
    download()
    assert stored(model).status == "ready", stored(model).error
    assert [environment[variable] for environment in started] == [TOKEN]
    assert variable not in os.environ
    assert TOKEN not in str(stored(model).__dict__)
    assert not any(TOKEN in path.read_text() for path in (get_settings().home / "logs").iterdir())


def test_a_token_that_cannot_be_opened_is_told(scheme: str, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.put(DEFAULT_PROJECT, {"hf": "hf_token", "modelscope": "modelscope_token"}[scheme], TOKEN)
    monkeypatch.setattr(get_settings(), "secret_key", "another")
    sealing._keys.cache_clear()
    model = register(f"{scheme}://{GATED}")
    download()
    assert (stored(model).error or {})["code"] == "secret_unreadable"


def test_a_model_s_code_is_fetched_only_where_it_may_run(
    scheme: str, hub: Hub, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"{scheme}://{REPOSITORY}"
    monkeypatch.setattr(get_settings(), "allow_remote_code", f"hf://other/model, {source}")
    allowed, other = register(source), register(f"{source}@v1")
    for model, fetched in ((allowed, True), (other, False)):
        hub.fetched.clear()
        download()
        assert stored(model).status == "ready", stored(model).error
        assert ("modeling_base.py" in {name for name, _ in hub.fetched}) == fetched
