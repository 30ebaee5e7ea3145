"""The machine's GPUs: which there are, which are a worker's own, and the lock that lets one process at a time use one."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from app.settings import get_settings

ASK_SECONDS = 20.0
_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Gpu:
    """A GPU: its number on this machine, its id (which `CUDA_VISIBLE_DEVICES` takes), name, and memory in GiB."""

    index: int
    uuid: str
    name: str
    memory_gb: float


class GpusUnreadable(Exception):
    """The driver does not tell which GPUs there are: why, in words."""


def list_gpus() -> list[Gpu]:
    """Every GPU of this machine, by number; none where there is no driver. Raises `GpusUnreadable`."""
    try:
        answer = subprocess.run(_QUERY, capture_output=True, text=True, timeout=ASK_SECONDS)
    except FileNotFoundError:
        return []
    except subprocess.TimeoutExpired as error:
        raise GpusUnreadable(f"nvidia-smi did not answer within {ASK_SECONDS:.0f} s") from error
    if answer.returncode:
        said = (answer.stderr or answer.stdout).strip().splitlines()
        raise GpusUnreadable(said[0] if said else f"nvidia-smi ended with exit code {answer.returncode}")
    return [_gpu(line) for line in answer.stdout.splitlines() if line.strip()]


def _gpu(line: str) -> Gpu:
    index, uuid, name, mebibytes = (part.strip() for part in line.split(","))
    return Gpu(int(index), uuid, name, round(float(mebibytes) / 1024, 1))


def own_gpus(chosen: str) -> list[Gpu]:
    """Those that `BURNISH_GPUS` names: `all`, `none`, or numbers with commas. Raises `ValueError` for a number that no GPU
    has, and `GpusUnreadable`."""
    if chosen == "none":
        return []
    there = list_gpus()
    if chosen == "all":
        return there
    by_number = {gpu.index: gpu for gpu in there}
    numbers = [int(number) for number in chosen.split(",")]
    if missing := [number for number in numbers if number not in by_number]:
        known = ", ".join(map(str, by_number)) or "none"
        raise ValueError(f"BURNISH_GPUS names GPU {missing[0]}; this machine has: {known}")
    return [by_number[number] for number in numbers]


def slots(own: list[Gpu]) -> int:
    """How many jobs a worker with these GPUs trains at the same time."""
    return get_settings().training_slots or max(len(own), 1)


def _lock_file(uuid: str) -> Path:
    return Path(tempfile.gettempdir()) / f"burnish-{uuid}.lock"


def take(uuid: str, seconds: float) -> int | None:
    """Holds the GPU's lock until the descriptor that is returned is closed, at the latest with this process. Waits up to
    `seconds` for whoever holds it; None where that was not enough."""
    descriptor = os.open(_lock_file(uuid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(0.1)


def is_free(uuid: str) -> bool:
    """Whether no process holds the GPU's lock now."""
    descriptor = take(uuid, 0.0)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None
