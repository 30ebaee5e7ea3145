"""Ways to run the command: in this process, as a process whose lines are read one by one, and in a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from typer.testing import CliRunner, Result

from app.cli import cli

PATIENCE = 20.0


def run_command(url: str, *arguments: object, input: str | None = None) -> Result:
    """Runs `burnish` in this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments], input=input, env={"BURNISH_URL": url})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def table(output: str) -> list[dict[str, str]]:
    """The rows of a table that was printed into a pipe, by their field."""
    header, *rows = [line.split("\t") for line in output.splitlines()]
    return [dict(zip(header, row, strict=True)) for row in rows]


@contextmanager
def started(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`burnish` as a process of its own, its stdout and stderr pipes."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    environment = os.environ | {"BURNISH_URL": url}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=1
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_with(stream: IO[str] | None, text: str) -> str:
    """The next line that contains `text`; fails where the stream ends first."""
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"the output ended without {text!r}")


class Terminal:
    """`burnish` in a pseudo-terminal: what it shows, and keys to press."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.shown = ""
        self._control, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *arguments],
            env=os.environ | {"BURNISH_URL": url, "TERM": "xterm", "COLUMNS": "120"},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
        )
        os.close(inner)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._control)

    def until(self, text: str) -> None:
        """Reads until `text` has been shown since the last call."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.shown:
            going_on = time.monotonic() < deadline and self._read()
            assert going_on, f"never shown: {text!r}, but {self.shown!r}"
        self.shown = self.shown.partition(text)[2]

    def press(self, keys: str) -> None:
        """Types."""
        os.write(self._control, keys.encode())

    def end(self) -> int:
        """Reads to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def _read(self) -> bool:
        if not select.select([self._control], [], [], PATIENCE)[0]:
            return False
        try:
            piece = os.read(self._control, 65536)
        except OSError:  # the other side is closed
            return False
        self.shown += piece.decode(errors="replace")
        return bool(piece)
