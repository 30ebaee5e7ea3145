"""GPUs that may be faulty: a test in a fresh process decides about each, and brings it back when it passes."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time

from app.jobs.tables import Job
from app.kit import gpus
from app.kit.gpus import Gpu
from app.kit.processes import python
from app.kit.queue import wake
from worker import trainers
from worker.slots import Slots

log = logging.getLogger(__name__)

TEST_SECONDS = 180.0
RETEST_SECONDS = 300.0
# How long a trainer that is ending may still hold the GPU.
LOCK_SECONDS = 60.0
COMMAND = python("worker.trainer.gpu_test")


def suspect(slots: Slots, job: Job, why: str) -> None:
    """Give the job's GPUs to no other job until each has passed a test. The tests run in threads of their own."""
    for gpu in slots.suspect_gpus(job, why):
        log.error("GPU %d is not used until a test passes: %s", gpu.index, why)
        name = f"gpu-{gpu.index}-test"
        threading.Thread(target=_test_until_it_passes, args=(slots, gpu, why), daemon=True, name=name).start()


def _test_until_it_passes(slots: Slots, gpu: Gpu, why: str) -> None:
    while (fault := find_fault(gpu.uuid)) is not None:
        slots.blame(gpu, f"{why} (its test: {fault})")
        log.error("GPU %d failed its test: %s", gpu.index, fault)
        time.sleep(RETEST_SECONDS)
    slots.trust(gpu)
    log.warning("GPU %d passed its test and is used again", gpu.index)
    wake("train")


def find_fault(uuid: str) -> str | None:
    """Test the GPU with this id. Returns what is wrong, in words, or None if it works. Blocks."""
    lock = gpus.take(uuid, LOCK_SECONDS)
    if lock is None:
        return f"another process held it for {LOCK_SECONDS:.0f} s"
    try:
        ended = subprocess.run(
            COMMAND, env=trainers.environment() | {"CUDA_VISIBLE_DEVICES": uuid},
            capture_output=True, text=True, timeout=TEST_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the test had not ended after {TEST_SECONDS:.0f} s"
    finally:
        os.close(lock)
    if ended.returncode == 0:
        return None
    words = ended.stderr.strip().splitlines() or [f"the test ended with exit code {ended.returncode}"]
    return words[-1]
