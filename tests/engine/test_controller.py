"""The controller as a real process with real embedded engines: what runs becomes what the rows want."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import httpx
import psutil
import pytest

from app.kit.database import utc_now, writing
from app.models.tables import Engine
from app.settings import Settings
from tests.conftest import eventually, on_embedded
from tests.engine.conftest import House, engine_processes
from worker.engine import client, controller, embedded, rows, running, vllm
from worker.engine.choice import choose_engine, engine_for

IDS = [5, 120, 340, 77]


def _servers(process: psutil.Process) -> list[psutil.Process]:
    return engine_processes(process, "worker.engine.embedded_server")


def _status(house: House, model_id: str) -> str | None:
    row = house.engine(model_id)
    return row and row.status


def test_a_wanted_engine_answers_and_a_deleted_model_s_engine_is_gone(house: House) -> None:
    house.add_model("model_1")
    house.want("model_1")
    with house.controller(engine="embedded") as process:
        row = house.ready("model_1")
        assert client.score(str(row.url), "model_1", IDS) < 0
        assert (row.resident_bytes or 0) > 50e6
        assert row.features == {"engine": "embedded", "tools": None, "reasoning": None, "response_format": False}
        assert (house.home / "logs/engine-model_1.log").read_bytes()
        assert not any(name.startswith("BURNISH_") for name in _servers(process)[0].environ())
        house.remove_model("model_1")
        eventually(lambda: not _servers(process), 20, "the engine has ended")


@on_embedded
def test_adapters_are_back_after_the_engine_died(house: House, make_adapter: Callable[[int], Path]) -> None:
    house.add_model("model_1")
    house.want("model_1")
    with house.controller(engine="embedded") as process:
        first = house.ready("model_1")
        house.add_adapter("model_a", make_adapter(1), "model_1")
        eventually(lambda: house.adapter("model_a").generation == first.generation, 30, "the adapter is loaded")  # type: ignore[union-attr]
        tuned = client.score(str(first.url), "model_a", IDS)
        _servers(process)[0].kill()
        again = house.ready("model_1", above=first.generation)
        assert house.adapter("model_a").generation == again.generation  # type: ignore[union-attr]
        assert client.score(str(again.url), "model_a", IDS) == pytest.approx(tuned, abs=1e-3)


@on_embedded
def test_the_least_recently_used_engine_makes_room(house: House) -> None:
    for model_id in ("model_1", "model_2", "model_3"):
        house.add_model(model_id)
    with house.controller(engine="embedded", max_engines="2") as process:
        for model_id in ("model_2", "model_1"):
            house.want(model_id)
            house.ready(model_id)
        with writing() as session:
            session.get_one(Engine, "model_1").last_used_at = utc_now() - timedelta(seconds=90)
            session.get_one(Engine, "model_2").last_used_at = utc_now() - timedelta(seconds=60)
        house.want("model_3")
        house.ready("model_3")
        assert [_status(house, each) for each in ("model_1", "model_2")] == ["stopped", "ready"]
        assert house.engine("model_1").url is None  # type: ignore[union-attr]
        assert len(_servers(process)) == 2


@on_embedded
def test_a_model_that_cannot_be_loaded_fails_with_the_log_s_last_lines_and_can_be_wanted_again(
    house: House, tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    house.add_model("model_broken", location=folder)
    house.add_model("model_away", location=tmp_path / "nothing")
    with house.controller(engine="embedded"):
        for model_id, code in (("model_broken", "engine_failed"), ("model_away", "model_unreadable")):
            for _ in range(2):
                house.want(model_id)
                eventually(lambda: _status(house, model_id) == "failed", 60, f"{model_id} has failed")  # noqa: B023
            error = house.engine(model_id).error  # type: ignore[union-attr]
            assert error is not None
            assert error["code"] == code
            assert str(folder) in error["message"] or model_id == "model_away"


@on_embedded
def test_an_engine_that_keeps_dying_fails_and_its_log_has_every_start(house: House) -> None:
    house.add_model("model_1")
    house.want("model_1")
    with house.controller(engine="embedded") as process:
        generation = 0
        for _ in range(controller.MAX_DEATHS):
            generation = house.ready("model_1", above=generation).generation
            _servers(process)[0].kill()
        eventually(lambda: _status(house, "model_1") == "failed", 30, "the engine has failed")
        assert house.engine("model_1").error["code"] == "engine_died"  # type: ignore[index,union-attr]
    log = (house.home / "logs/engine-model_1.log").read_text()
    assert log.count(running.START_MARK) == controller.MAX_DEATHS
    assert running.START_MARK not in running.log_tail(house.home / "logs/engine-model_1.log")


@on_embedded
def test_a_killed_controller_leaves_no_engine_and_the_next_starts_it_again(house: House) -> None:
    for model_id in ("model_1", "model_old"):
        house.add_model(model_id)
        house.want(model_id)
    with house.controller(engine="embedded") as process:
        first = house.ready("model_1")
        house.ready("model_old")
        engines = _servers(process)
        inner = [each for each in process.children() if "worker.engine" in each.cmdline()]
        assert len(inner) == 1
        assert len(engines) == 2
        with writing() as session:
            session.get_one(Engine, "model_old").last_used_at = utc_now() - timedelta(hours=1)
        inner[0].kill()
        eventually(lambda: not any(each.is_running() for each in engines), 20, "the engines are gone")
    assert _status(house, "model_1") == "ready"  # nobody was left to say otherwise
    with house.controller(engine="embedded"):
        again = house.ready("model_1", above=first.generation)
        assert httpx.get(f"{again.url}/health").status_code == 200
        assert _status(house, "model_old") == "stopped"
    assert _status(house, "model_1") == "wanted"  # as the next controller will find it


def test_a_start_waits_for_memory_and_says_so_when_there_is_none(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.add_model("model_1")
    house.want("model_1")
    state = controller.State(Settings(), embedded, None)  # type: ignore[arg-type]
    monkeypatch.setattr(embedded, "memory_available", lambda _: 2**20)
    controller.tick(state)
    assert _status(house, "model_1") == "wanted"
    state.waiting_since["model_1"] -= 2 * controller.ROOM_SECONDS
    controller.tick(state)
    assert house.engine("model_1").error["code"] == "engine_memory"  # type: ignore[index,union-attr]


def test_auto_takes_vllm_where_it_is_installed(tmp_path: Path) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    assert choose_engine(Settings(vllm_python=python)) is embedded
    python.symlink_to(os.path.realpath("/bin/sh"))
    assert choose_engine(Settings(vllm_python=python)) is embedded
    package = tmp_path / "lib/python3.11/site-packages/vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    assert choose_engine(Settings(vllm_python=python)) is vllm
    assert choose_engine(Settings(vllm_python=python, engine="embedded")) is embedded


def test_what_vllm_does_not_know_is_the_embedded_engine_s(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "lib/python3.11/site-packages/vllm/model_executor/models"
    models.mkdir(parents=True)
    (models / "registry.py").write_text('MODELS = {"BaichuanForCausalLM": ("baichuan", "BaichuanForCausalLM")}')
    settings = Settings(vllm_python=tmp_path / "bin/python")
    monkeypatch.setattr(rows, "runs_own_code", lambda model: "own_code" in model.facts)
    house.add_model("model_plain", facts={"architecture": "NewForCausalLM"})
    house.add_model("model_score", kind="reward")
    house.add_model("model_routed", kind="merged", facts={"mixture_of_depths": True})
    house.add_model("model_known", facts={"architecture": "BaichuanForCausalLM", "own_code": True})
    house.add_model("model_own", facts={"architecture": "OwnForCausalLM", "own_code": True})
    house.add_model("model_falcon", facts={"architecture": "FalconForCausalLM"})
    for id in ("model_plain", "model_score", "model_routed", "model_known", "model_own", "model_falcon"):
        house.want(id)
    chosen = {id: engine_for(wanted, vllm, settings) for id, wanted in rows.read_engines().items()}
    assert {id for id, engine in chosen.items() if engine is vllm} == {"model_plain", "model_known"}
    assert {id for id, engine in chosen.items() if engine is embedded} == set(chosen) - {"model_plain", "model_known"}
