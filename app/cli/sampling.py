"""`num_samples`: a part of a file's rows, drawn with a fixed seed, in the file's order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from app.cli.dataset_info import Refused

SEED = 42
BLOCK_BYTES = 2**20
# An array is read whole.
MAX_ARRAY_BYTES = 2**30
LINES = (".jsonl", ".txt")


def sample(source: Path, count: int, folder: Path) -> Path:
    """A file in `folder` with `count` of the rows of `source`, or `source` itself where it has no more than that.

    Reads JSON arrays, JSONL and plain text. Raises `Refused` for anything else.
    """
    if source.suffix.lower() not in (".json", *LINES):
        raise Refused(f"num_samples is taken of JSON, JSONL and text files, not of {source.name}")
    if source.suffix.lower() == ".json" and _is_array(source):
        return _sample_array(source, count, folder)
    total = sum(1 for _ in _rows(source))
    if total <= count:
        return source
    drawn = set(random.Random(SEED).sample(range(total), count))
    # JSONL may be called .json: the container is told by its content.
    target = folder / source.name
    with target.open("wb") as file:
        file.writelines(row for number, row in enumerate(_rows(source)) if number in drawn)
    return target


def _sample_array(source: Path, count: int, folder: Path) -> Path:
    import orjson

    if source.stat().st_size > MAX_ARRAY_BYTES:
        raise Refused("num_samples is taken of arrays up to 1 GiB; make it JSONL")
    try:
        rows = orjson.loads(source.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise Refused(f"the file is not valid JSON: {error}") from error
    if len(rows) <= count:
        return source
    target = folder / source.with_suffix(".jsonl").name
    with target.open("wb") as file:
        for number in sorted(random.Random(SEED).sample(range(len(rows)), count)):
            file.write(orjson.dumps(rows[number]) + b"\n")
    return target


def _is_array(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(BLOCK_BYTES).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _rows(source: Path) -> Iterator[bytes]:
    """The lines that hold something, each with its end."""
    with source.open("rb") as file:
        for line in file:
            if not line.isspace():
                yield line if line.endswith(b"\n") else line + b"\n"
