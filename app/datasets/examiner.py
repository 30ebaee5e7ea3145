"""The process that checks uploads while they arrive: `python -m app.datasets.examiner`.

It reads a `Request` as a line of JSON; then, each on a line, how many bytes of the file have been written so far, the last of
them in brackets; and answers with a line of JSON, the `Findings`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

import msgspec

from app.datasets.containers import container_of
from app.datasets.examining import examine
from app.datasets.reading import Options
from app.kit.full_disk import exit_when_full


class Request(msgspec.Struct):
    """The file at `path`, called `filename` by its sender, read under `options`. It may unpack to `limit` bytes. What does not
    fit into the answer is written to `folder`."""

    path: str
    filename: str
    options: Options
    folder: str
    limit: int


class Arriving:
    """A source: a file that is still being written, by somebody who says so line by line in `news`."""

    def __init__(self, file: BinaryIO, news: BinaryIO) -> None:
        self._file, self._news = file, news
        self._read = self._written = 0
        self._complete = False

    def read(self, size: int, /) -> bytes:
        while self._read == self._written and not self._complete:
            self._listen()
        data = self._file.read(min(size, self._written - self._read))
        self._read += len(data)
        return data

    def wait(self) -> None:
        """Returns when all of the file has been written."""
        while not self._complete:
            self._listen()

    def _listen(self) -> None:
        line = self._news.readline()
        if not line:
            raise SystemExit("whoever wrote the file is gone")
        self._written = int(line.strip(b"[]\n"))
        self._complete = line.startswith(b"[")


def main() -> None:
    """Answers requests until standard input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    for line in requests:
        request = msgspec.json.decode(line, type=Request)
        path = Path(request.path)
        with path.open("rb") as file:
            arriving = Arriving(file, requests)
            with container_of(arriving, path, request.filename, request.limit) as container:
                findings = examine(container, request.options, Path(request.folder))
            arriving.wait()
        answers.write(msgspec.json.encode(findings) + b"\n")
        answers.flush()


if __name__ == "__main__":
    with exit_when_full():
        main()
