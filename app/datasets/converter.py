"""The process that makes canonical rows: `python -m app.datasets.converter`.

It reads a `Request` as a line of JSON and answers with a line of JSON, the SHA-256 of the file that it wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from app.datasets.deriving import write_rows
from app.datasets.reading import Options
from app.kit.full_disk import exit_when_full
from app.kit.uploads import HashedFile


class Request(msgspec.Struct):
    """The file at `path`, called `filename` by its sender and read under `options`, becomes rows in a new file `target`."""

    path: str
    filename: str
    options: Options
    target: str


def main() -> None:
    """Answers requests until standard input ends."""
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        file = HashedFile(Path(request.target))
        try:
            write_rows(Path(request.path), request.filename, request.options, file)
            file.sync()
        finally:
            file.close()
        sys.stdout.buffer.write(msgspec.json.encode(file.sha256) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    with exit_when_full():
        main()
