"""burnish doctor: every thing that can be missing is told with how to mend it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI

from app import doctor
from app.doctor import Finding
from app.settings import Settings
from tests.cli.terminal import run_command, table
from tests.conftest import serving


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home of the test's own, and no other setting."""
    monkeypatch.setenv("BURNISH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BURNISH_PORT", "47801")


BROKEN: dict[str, tuple[Callable[[Settings], Finding], dict[str, str]]] = {
    "home": (doctor.home, {"home": "/proc/nowhere"}),
    "model roots": (doctor.model_roots, {"model_roots": "/proc/nowhere"}),
    "PostgreSQL": (doctor.database, {"database_url": "postgresql://burnish:secret@127.0.0.1:1/none"}),
    "Redis": (doctor.broker, {"broker_url": "redis://:secret@127.0.0.1:1/0"}),
    "storage": (doctor.storage, {"storage_url": "file:///proc/nowhere"}),
    "address": (doctor.address, {"host": "192.0.2.1"}),
    "vLLM": (doctor.vllm, {"engine": "vllm", "vllm_python": "/nowhere/bin/python"}),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_broken_fails_and_says_how_to_mend_it(broken: str) -> None:
    check, fields = BROKEN[broken]
    finding = check(Settings(**fields))  # type: ignore[arg-type]
    assert finding.status == "fail"
    assert finding.mend
    assert "secret" not in finding.found


def test_a_fresh_machine_passes_and_stays_untouched(tmp_path: Path) -> None:
    result = run_command("", "doctor")
    status = {each["check"]: each["status"] for each in table(result.stdout)}
    assert set(status) == set(doctor.CHECKS)
    assert "fail" not in status.values(), result.stdout
    assert result.exit_code == 0
    assert status["database"] == "warn"
    assert not (tmp_path / "home").exists()


def test_a_check_that_fails_makes_the_command_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"odd": lambda _: Finding("fail", "It is odd.", "Make it even.")})
    result = run_command("", "doctor")
    assert (result.exit_code, result.stdout) == (
        1,
        "check\tstatus\tfound\tmend\nodd\tfail\tIt is odd.\tMake it even.\n",
    )


def test_a_check_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"breaks": lambda _: 1 / 0, "works": lambda _: Finding("ok", "fine")})
    assert {name: finding.status for name, finding in doctor.examine(Settings()).items()} == {
        "breaks": "fail",
        "works": "ok",
    }


def test_a_setting_that_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_MAX_ENGINES", "none")
    result = run_command("", "doctor")
    assert result.exit_code == 1
    assert [(each["check"], each["status"]) for each in table(result.stdout)] == [("BURNISH_MAX_ENGINES", "fail")]


def test_the_schema_is_held_against_the_migrations(tmp_path: Path) -> None:
    from app.up import migrate
    from tests.conftest import reset_caches

    reset_caches()
    migrate()
    reset_caches()
    assert doctor.database(Settings()).status == "ok"
    with sqlite3.connect(tmp_path / "home" / "burnish.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    later = doctor.database(Settings())
    assert (later.status, "later version" in later.found) == ("fail", True)


def test_our_own_service_may_have_the_port_and_nobody_else() -> None:
    ours, other = FastAPI(), FastAPI()
    ours.get("/health")(lambda: {"status": "ok", "version": "1"})
    for program, status in ((ours, "ok"), (other, "fail")):
        with serving(program) as url:
            assert doctor.address(Settings(port=int(url.rpartition(":")[2]))).status == status


def test_auto_takes_vllm_only_where_it_is(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to("/bin/true")
    without = Settings(vllm_python=python)
    assert "takes embedded" in doctor.engine(without).found
    assert doctor.vllm(without).status == "warn"
    installed = tmp_path / "lib" / "python3.11" / "site-packages" / "vllm-1.2.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 1.2\n")
    assert "takes vllm" in doctor.engine(without).found
    assert doctor.vllm(without).found == f"vllm 1.2 at {python}"
