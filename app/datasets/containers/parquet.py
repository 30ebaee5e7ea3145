"""Parquet, read row by row by a process of its own: see `parquet_rows.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from app.datasets.containers import json_rows
from app.datasets.containers.source import Broken, Limited, Source, Unreadable

PROGRAM = Path(__file__).with_name("parquet_rows.py")


@contextmanager
def rows(path: Path, limit: int) -> Iterator[Iterator[tuple[int, bytes | Unreadable]]]:
    """Yields the rows as JSON text with their numbers, `limit` bytes of it at most. They raise `Broken`."""
    # Isolated from the folder it lies in, whose modules may bear the names of others.
    command = [sys.executable, "-I", str(PROGRAM), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield _rows(Limited(_Printed(process), limit))
        finally:
            process.kill()


class _Printed:
    """A source: what a process prints, until it ends well."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def read(self, size: int, /) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(size)
        if not data and self._process.wait():
            raise Broken(
                "unreadable_file",
                "cannot be read: the file is Parquet, but it is damaged, or takes too much memory",
                "Write the file again with smaller row groups, or as JSONL.",
            )
        return data


def _rows(source: Source) -> Iterator[tuple[int, bytes | Unreadable]]:
    for number, line in json_rows.lines(source):
        if isinstance(line, bytes) and line.startswith(b"["):
            code, message, hint = orjson.loads(line)
            yield number, Unreadable(code, message, hint, final=code == "unreadable_file")
        else:
            yield number, line
