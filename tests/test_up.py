"""`burnish up` says why it does not start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from app.kit.home_lock import hold_home
from app.kit.processes import python
from demo.service import free_port
from tests.conftest import eventually, settings_of


def environment(home: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
    return kept | {"BURNISH_HOME": str(home), "BURNISH_PORT": str(free_port())} | settings


def run(word: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        python("app.cli", *word.split()), env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def without_peft(tmp_path: Path) -> str:
    """A folder for PYTHONPATH under which a Python finds no PEFT, as where Burnish was installed without its extra."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['peft'] = None\n")
    return os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))


# `up` with two other processes in its table: one ends before anything answers, one never would.
BROKEN = """
from app import up
up.PROCESSES = {"api": ["sh", "-c", "exit 3"], "beat": ["sleep", "1000"]}
up.up()
"""


def test_a_process_that_ends_before_the_api_answers_ends_the_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"Burnish could not start: api ended with exit code 3. See {tmp_path / 'logs' / 'api.log'}\n"
    )
    assert "serves" not in done.stdout
    assert not [each for each in psutil.process_iter(["environ"]) if str(tmp_path) in str(each.info["environ"])]


def test_a_start_can_be_ended_and_says_what_is_not_installed(tmp_path: Path, without_peft: str) -> None:
    home = tmp_path / "home"
    process = subprocess.Popen(
        python("app.cli", "up"), env=environment(home, PYTHONPATH=without_peft), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(
        "Training is off, since packages are missing: peft. Install Burnish with"
    )
    assert process.stdout.readline().startswith("Burnish starts.")
    below = eventually(lambda: psutil.Process(process.pid).children(recursive=True), 10, "its processes")
    process.send_signal(signal.SIGTERM)
    assert process.wait(40) == 0
    assert process.stdout.read() == ""
    assert not any(each.is_running() for each in below)
    assert not (home / "logs" / "training.log").exists()


def test_a_training_worker_says_what_is_not_installed(tmp_path: Path, without_peft: str) -> None:
    done = run("worker --queue training", environment(tmp_path / "home", PYTHONPATH=without_peft))
    assert done.returncode == 1
    assert done.stderr.startswith("This worker cannot train, since packages are missing: peft. Install Burnish with")


def test_a_home_that_cannot_be_made_is_named() -> None:
    done = run("up", environment(Path("/dev/null/home")))
    assert done.returncode == 1
    assert (
        done.stderr == "/dev/null/home cannot be written to (Not a directory). Set BURNISH_HOME to a folder of yours.\n"
    )


def test_an_address_of_another_machine_is_named(tmp_path: Path) -> None:
    done = run("api", environment(tmp_path, BURNISH_HOST="192.0.2.1"))
    assert done.returncode == 1
    assert done.stderr.startswith("Burnish cannot listen on 192.0.2.1:")
    assert "BURNISH_HOST" in done.stderr


def test_a_home_is_free_again_when_its_holder_was_killed(tmp_path: Path) -> None:
    hold = "import sys; from app.kit.home_lock import hold_home\n"
    hold += "with hold_home(): print('held', flush=True); sys.stdin.read()"
    with settings_of({"BURNISH_HOME": str(tmp_path)}):
        command = [sys.executable, "-c", hold]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            assert holder.stdout is not None
            holder.stdout.readline()
            with pytest.raises(SystemExit, match=f"process {holder.pid}, since"), hold_home():
                pass
            holder.kill()
        with hold_home():
            pass
        assert f"process {os.getpid()}," in (tmp_path / "up.lock").read_text()
