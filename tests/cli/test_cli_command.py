"""The command as such: what it says when nobody answers, and how little it loads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from app.cli.output import for_people
from tests.cli.terminal import run_command
from tests.conftest import serving

HEAVY = ("torch", "transformers", "pyarrow", "sqlalchemy", "fastapi", "celery", "pydantic_settings")


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """Another program's address."""
    program = FastAPI()
    program.get("/jobs")(lambda: PlainTextResponse("<h1>Welcome</h1>"))
    with serving(program) as url:
        yield url


def test_where_nobody_answers_the_hint_says_how_to_start() -> None:
    result = run_command("http://127.0.0.1:1", "jobs", "list")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "No service answers at http://127.0.0.1:1." in result.stderr
    assert "make up" in result.stderr


def test_another_program_is_recognised(stranger: str) -> None:
    result = run_command(stranger, "jobs", "list")
    assert result.exit_code == 1
    assert "not as Burnish does: <h1>Welcome</h1>" in result.stderr
    assert "404" in run_command(stranger, "models", "list").stderr


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    assert "is not the address of a service" in run_command(url, "jobs", "list").stderr


def test_the_option_goes_before_the_environment() -> None:
    assert (
        "http://127.0.0.1:2." in run_command("http://127.0.0.1:1", "--url", "http://127.0.0.1:2", "jobs", "list").stderr
    )


def test_the_port_of_the_service_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BURNISH_PORT", "3")
    assert "http://127.0.0.1:3." in run_command("", "jobs", "list").stderr


@pytest.mark.parametrize("arguments", [["--help"], ["jobs", "create", "--help"], ["jobs", "list"]])
def test_client_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from app.cli import main
try:
    main()
except SystemExit:
    pass
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    environment = os.environ | {"BURNISH_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines()[-1] == "[]"


def test_colours_asked_for_elsewhere_stay_out_of_a_pipe() -> None:
    environment = os.environ | {"FORCE_COLOR": "1", "BURNISH_URL": "http://127.0.0.1:1"}
    command = [sys.executable, "-m", "app.cli", "jobs", "list"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "No service answers" in result.stderr
    assert "\x1b" not in result.stderr


def test_the_version_is_that_of_the_package() -> None:
    result = run_command("", "--version")
    assert (result.exit_code, result.stdout) == (0, f"burnish {version('burnish')}\n")


def test_a_usage_error_is_told_on_stderr_with_exit_code_2() -> None:
    result = run_command("", "jobs", "list", "--nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--nothing" in result.stderr


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("bytes", 1536, "1.5 KiB"),
        ("limits.storage_bytes", 2**40, "1.0 TiB"),
        ("gpu_seconds", 3725.4, "1:02:05"),
        ("max_seconds", 42, "42 s"),
        ("parameters", 5_400_000, "5.4 M"),
        ("tokens.total", 91234, "91,234"),
        ("hyperparameters.batch_size", 4096, "4096"),
        ("hyperparameters.seed", 4_294_967_295, "4294967295"),
        ("steps", None, ""),
        ("error.hint", "See GET /workers.", "See `burnish workers`."),
    ],
)
def test_a_terminal_shows_numbers_for_people(path: str, value: object, shown: str) -> None:
    assert for_people(path, value) == shown
