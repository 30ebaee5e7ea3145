"""What bounds an attempt: its time, and the memory and the disk of the machine."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app.jobs import attempts
from app.jobs.tables import Job
from app.kit.database import reading, writing
from tests.conftest import eventually
from tests.jobs.conftest import dataset
from tests.jobs.test_lifecycle import job
from worker import memory, trainers
from worker.slots import own_slots
from worker.supervisor import STOPPED_BY, Beat, Stop, train_next
from worker.trainer.failures import of_anything, unreadable_model

__all__ = ["dataset", "job"]


def bound(id: str, seconds: int | None) -> None:
    with writing() as session:
        session.get_one(Job, id).max_seconds = seconds


def claim() -> Job:
    claimed = attempts.claim("here")
    assert claimed is not None
    return claimed


def run_back(id: str, seconds: float) -> None:
    """The job's present attempt ends as lost, having run for so long."""
    with writing() as session:
        row = session.get_one(Job, id)
        row.attempts[-1].started_at -= timedelta(seconds=seconds)
        attempts.lose(session, row, "worker_lost", "It died.")


def test_a_job_that_ran_for_max_seconds_fails_and_a_retry_begins_anew(
    client: httpx.Client, job: dict[str, Any]
) -> None:
    bound(job["id"], 60)
    beat = Beat(claim(), threading.Event())
    beat()  # there is time left
    run_back(job["id"], 61)
    claimed = claim()
    with pytest.raises(Stop) as stopped:
        Beat(claimed, threading.Event())()
    with writing() as session:
        STOPPED_BY[stopped.value.why](session, attempts.hold(session, claimed))
    shown = client.get(f"/jobs/{job['id']}").json()
    assert (shown["status"], shown["error"]["code"]) == ("failed", "max_seconds_exceeded")
    client.post(f"/jobs/{job['id']}/retry").raise_for_status()
    Beat(claim(), threading.Event())()


def test_a_cancelled_job_is_cancelled_also_when_its_time_is_over(client: httpx.Client, job: dict[str, Any]) -> None:
    bound(job["id"], 60)
    claim()
    run_back(job["id"], 61)
    claimed = claim()
    client.post(f"/jobs/{job['id']}/cancel")
    with pytest.raises(Stop) as stopped:
        Beat(claimed, threading.Event())()
    assert stopped.value.why == "cancel"


def test_max_seconds_is_written_out(client: httpx.Client, job: dict[str, Any]) -> None:
    assert job["max_seconds"] is None
    body = {"base_model": "demo-base", "dataset": job["dataset"], "max_seconds": 3600}
    made = client.post("/jobs", json=body).json()
    assert made["max_seconds"] == 3600
    with reading() as session:
        assert session.get_one(Job, made["id"]).max_seconds == 3600


def test_what_a_process_held_is_seen_and_a_kernel_s_kill_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("oom 0\noom_kill 2\n")
    monkeypatch.setattr(memory, "_COUNTERS", (tmp_path / "missing", counter))
    code = "import sys; held = bytes(b'x') * 80_000_000; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        watch = memory.MemoryWatch(process.pid)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        eventually(lambda: watch.look() or watch.peak_bytes > 80_000_000, 10, "the memory that it holds")
        assert watch.ran_out() is None
        process.kill()
    watch.look()  # of a process that is gone: what it held stays
    counter.write_text("oom 1\noom_kill 3\n")
    said = watch.ran_out()
    assert said is not None
    assert f"of {psutil.virtual_memory().total / 2**30:.1f} GiB" in said
    assert "0.1" in said


class AcceleratorError(RuntimeError):
    """CUDA's own error is known by this name: a build of torch without CUDA cannot make one."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "out_of_memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), "out_of_memory"),
        (OSError(28, "No space left on device"), "disk_full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "disk_full"),
        (RuntimeError("basic_ios::clear: iostream error"), "disk_full"),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "gpu_failed"),
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), "gpu_failed"),
        (AcceleratorError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (AcceleratorError("CUDA error: device-side assert triggered"), "trainer_error"),
        (ValueError("odd"), "trainer_error"),
    ],
)
def test_a_library_s_error_is_told_for_what_it_is(error: Exception, code: str) -> None:
    assert of_anything(error).code == code
    # While a model is read, too, progress is told in a file and memory is taken.
    reading = unreadable_model("folder", "weights", error)
    assert reading.code == ("model_unreadable" if code == "trainer_error" else code)


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_told_for_that() -> None:
    import torch

    with pytest.raises(RuntimeError) as raised:  # not an `OSError`, and not always the same words
        torch.save({"step": torch.zeros(300)}, "/dev/full")
    assert of_anything(raised.value).code == "disk_full"


def test_an_attempt_whose_worker_meets_a_full_disk_is_lost_for_that(
    client: httpx.Client, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "start", lambda *_: Path("/dev/full").write_bytes(b"no room"))
    monkeypatch.setattr(trainers, "keep_warm", lambda slots: None)
    assert train_next(own_slots(), threading.Event())
    with reading() as session:
        shown, attempt = client.get(f"/jobs/{job['id']}").json(), session.get_one(Job, job["id"]).attempts[0]
    assert (shown["status"], attempt.outcome) == ("queued", "lost")
    assert "disk is full" in str(attempt.reason)
