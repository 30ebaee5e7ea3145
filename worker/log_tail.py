"""What a trainer writes to its log, as text that can be kept in the database: whole lines, as much at a time as is given here."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import BinaryIO

from app.jobs.tables import Job
from app.settings import get_settings

PIECE_BYTES = 64 * 2**10
ATTEMPT_BYTES = 4 * 2**20


def log_file(job: Job) -> Path:
    """Where the standard error of the trainer of the job's present attempt lies on this machine."""
    folder = get_settings().home.resolve() / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{job.id}-{job.attempt}.log"


def next_lines(path: Path, offset: int, *, ended: bool = False) -> tuple[str, int]:
    """The whole lines after so many bytes of the file, at most 64 KiB of it, and the offset after them.

    A line without an end is given when it is longer than that, or nothing more comes (`ended`). After 4 MiB a sentence says
    where the rest is; of that the last 64 KiB are given when nothing more comes. A file that cannot be read has no lines.
    """
    try:
        with path.open("rb") as file:
            if _is_full(offset):
                return _last_lines(file, offset) if ended else ("", offset)
            file.seek(offset)
            data = file.read(PIECE_BYTES)
    except OSError:
        return "", offset
    data = data[: _end(data, ended)]
    text, offset = _clean(data), offset + len(data)
    if data and _is_full(offset):
        text += f"(From here on only the last lines are kept here. All of it: {path} on {socket.gethostname()})\n"
    return text, offset


def _is_full(offset: int) -> bool:
    return offset > ATTEMPT_BYTES - PIECE_BYTES


def _last_lines(file: BinaryIO, offset: int) -> tuple[str, int]:
    size = file.seek(0, 2)
    if size <= offset:
        return "", offset
    start = max(offset, size - PIECE_BYTES)
    file.seek(start)
    data = file.read(PIECE_BYTES)
    if start > offset:  # in the middle of a line, most likely
        data = data[data.find(b"\n") + 1 :]
    return _clean(data), size


def _end(data: bytes, ended: bool) -> int:
    """After how many bytes the last whole line ends."""
    if end := data.rfind(b"\n") + 1:
        return end
    if len(data) < PIECE_BYTES:
        return len(data) if ended else 0
    if end := data.rfind(b"\r") + 1:  # between two states of a progress bar
        return end
    for end in range(len(data) - 1, len(data) - 4, -1):  # where no character of UTF-8 is cut
        if data[end] & 0xC0 != 0x80:
            return end
    return len(data)


def _clean(data: bytes) -> str:
    """The text as a terminal would leave it: of a line that was written over, the last state. PostgreSQL keeps no NUL."""
    if not data:
        return ""
    lines = data.decode("utf-8", errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}").split("\n")
    text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return text if text.endswith("\n") else text + "\n"
