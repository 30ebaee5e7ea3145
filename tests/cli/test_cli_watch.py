"""burnish jobs watch, and what else goes on until a job has ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

import httpx
import pytest

from app.jobs import attempts
from app.jobs.tables import Job
from app.kit.database import writing
from tests.cli.conftest import Run
from tests.cli.terminal import Terminal, line_with, started
from tests.cli.work import cancel, claim, fail, report, succeed, train
from tests.conftest import serving

ENDS: list[tuple[Callable[[Job], None], int, str]] = [
    (succeed, 0, "Ask it: burnish chat"),
    (fail, 1, "Hint: Use a smaller batch_size."),
    (cancel, 2, "The job was cancelled."),
]


def serving_at(port: int, app: object) -> serving:
    """The application again, where it was before."""
    again = serving(app)
    again.socket.close()
    again.socket = socket.create_server(("127.0.0.1", port))
    again.thread = threading.Thread(target=again.server.run, args=([again.socket],), daemon=True)
    return again


@pytest.mark.parametrize(("end", "code", "told"), ENDS, ids=["succeeded", "failed", "cancelled"])
def test_the_exit_code_tells_how_the_job_ended(
    service: str, job: str, end: Callable[[Job], None], code: int, told: str
) -> None:
    with started(service, "jobs", "watch", job) as process:
        line_with(process.stdout, "created")
        running = claim(job)
        train(running, 1)
        line_with(process.stdout, "Step 1 of 10, loss 2.0000.")
        end(running)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert told in errors
    assert "\x1b" not in output + errors


def test_create_watches_what_it_created(service: str, dataset: str) -> None:
    with started(service, "jobs", "create", "demo-base", dataset, "--deploy", "none") as process:
        id = line_with(process.stderr, "job_").split()[0]
        succeed(claim(id))
        assert process.wait(20) == 0
        line_with(process.stderr, "Stored as")


def test_create_keeps_stdout_for_the_object(service: str, dataset: str) -> None:
    with started(service, "jobs", "create", "demo-base", dataset, "--json", "--watch") as process:
        succeed(claim(line_with(process.stderr, "job_").split()[0]))
        output, _ = process.communicate(timeout=20)
    assert json.loads(output)["status"] == "succeeded"


@pytest.mark.parametrize("command", [["watch"], ["events", "--follow"]], ids=["watch", "events"])
def test_ctrl_c_leaves_the_job_running(service: str, client: httpx.Client, job: str, command: list[str]) -> None:
    running = claim(job)
    with started(service, "jobs", *command, job) as process:
        line_with(process.stdout, "started")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "The job goes on." in errors
    assert client.get(f"/jobs/{job}").json()["status"] == "running"
    cancel(running)


@pytest.mark.parametrize("command", [["watch"], ["events", "--follow"]], ids=["watch", "events"])
def test_a_connection_that_drops_is_taken_up_again(service: str, job: str, command: list[str]) -> None:
    from app.main import create_app

    first = serving(create_app())
    port = first.socket.getsockname()[1]
    with ExitStack() as running_service:
        url = running_service.enter_context(first)
        with started(url, "jobs", *command, job) as process:
            line_with(process.stdout, "created")
            running = claim(job)
            running_service.close()
            line_with(process.stderr, "Trying again")
            train(running, 1)
            running_service.enter_context(serving_at(port, create_app()))
            line_with(process.stdout, "Step 1 of 10")
            succeed(running)
            output, _ = process.communicate(timeout=20)
    assert "succeeded" in output
    assert "created" not in output
    assert process.returncode == 0


def test_a_terminal_shows_a_bar(service: str, job: str) -> None:
    with Terminal(service, "jobs", "watch", job) as terminal:
        terminal.until("queued")
        running = claim(job)
        train(running, 3)
        terminal.until("training")
        terminal.until("3/10  loss 0.6667  5100 tokens/s  1:05 left")
        report(running, {"type": "warning", "message": "2 rows were cut \x1b[31m."})
        terminal.until("2 rows were cut �[31m.")
        succeed(running)
        terminal.until("Ask it: burnish chat")
        assert terminal.end() == 0


def test_ctrl_c_in_a_terminal_leaves_the_job_running(service: str, run: Run, job: str) -> None:
    with Terminal(service, "jobs", "watch", job) as terminal:
        terminal.until("queued")
        os.kill(terminal.process.pid, signal.SIGINT)
        terminal.until("The job goes on.")
        assert terminal.end() == 130
    assert run("jobs", "cancel", job).exit_code == 0


def test_an_unknown_job_is_told_at_once(run: Run) -> None:
    for command in (["watch"], ["events", "--follow"], ["metrics"]):
        assert "does not exist" in run("jobs", *command, "job_none").stderr


def test_a_paused_job_says_so_and_goes_on_when_it_is_resumed(service: str, run: Run, job: str) -> None:
    run("jobs", "pause", job)
    with started(service, "jobs", "watch", job) as process:
        assert f"burnish jobs resume {job}" in line_with(process.stderr, "The job is paused")
        run("jobs", "resume", job)
        succeed(claim(job))
        assert process.wait(20) == 0
        assert "paused" not in process.stderr.read()  # it was said once


def test_a_terminal_says_that_a_job_is_paused_at_its_step(service: str, run: Run, job: str) -> None:
    running = claim(job)
    train(running, 3)
    run("jobs", "pause", job)
    with writing() as session:
        attempts.paused(session, attempts.hold(session, running))
    with Terminal(service, "jobs", "watch", job) as terminal:
        terminal.until("The job is paused at step 3.")
        cancel_paused = run("jobs", "cancel", job)
        assert cancel_paused.exit_code == 0
        assert terminal.end() == 2


def test_a_queued_job_that_nobody_works_on_says_what_it_waits_for(service: str, job: str) -> None:
    with started(service, "jobs", "watch", job) as process:
        assert "a worker: none was heard of lately" in line_with(process.stderr, "The job is queued. It waits for")
        cancel(claim(job))
        assert process.wait(20) == 2
