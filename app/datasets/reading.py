"""Reads an uploaded file: container → rows → checks → canonical rows, in one pass and bounded memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from app.datasets import containers
from app.datasets.canonical import RowsWriter
from app.datasets.containers import Unreadable
from app.datasets.formats import FORMATS, Format, other_kind, recognise
from app.datasets.formats.checks import BadRow, kind_of, shown
from app.kit.errors import InvalidValue
from app.kit.uploads import HashedFile

MAX_PROBLEMS = 100


class Canonical(NamedTuple):
    """What a file was read into."""

    format: Format
    rows: int
    sha256: str


class Problems:
    """What is wrong with the rows: the first hundred, and how many there are."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[dict[str, Any]] = []

    def add(self, line: int | None, path: str | None, message: str) -> None:
        self.count += 1
        if len(self.first) < MAX_PROBLEMS:
            self.first.append({"line": line, "path": path, "message": message})


def read(source: Path, target: Path, asked: str) -> Canonical:
    """Reads `source` in the format `asked` (`auto`: that of its first object) and writes its canonical rows to `target`.

    Raises `InvalidValue` with `problems` where a row cannot be trained on, or where there is none.
    """
    chosen, total, problems = FORMATS.get(asked), 0, Problems()
    file = HashedFile(target)
    try:
        with RowsWriter(file) as writer:
            for line, value in containers.rows(source):
                total += 1
                if type(value) is not dict:
                    problems.add(line, None, _not_a_row(value))
                    continue
                chosen = chosen or _recognised(line, value)
                try:
                    writer.append(chosen.read(value))
                except BadRow as bad:
                    problems.add(line, bad.path, bad.message)
        if problems.count or not total or chosen is None:
            _refuse(source, total, problems)
        file.sync()
    finally:
        file.close()
    return Canonical(chosen, total, file.sha256)


def _not_a_row(value: Any) -> str:
    return str(value) if type(value) is Unreadable else f"a row must be an object, is {kind_of(value)}"


def _refuse(source: Path, total: int, problems: Problems) -> NoReturn:
    if not problems.count:
        message = "The file has no rows." if source.stat().st_size else "The file is empty."
        problems.add(None, None, message)
        hint = "Send JSONL, one object a line, or a JSON array of objects."
    else:
        first = problems.first[0]
        where = f"line {first['line']}" + (f", {first['path']}" if first["path"] else "")
        message = f"{problems.count} of {total} rows cannot be trained on; the first: {where}: {first['message']}."
        hint = "Mend or remove the rows in 'problems', then upload the file again. Nothing was stored."
    raise _bad_rows(message, problems, hint)


def _recognised(line: int, row: dict[str, Any]) -> Format:
    """The row's format. Raises `InvalidValue` that says what was found, and what is expected."""
    if found := recognise(row):
        return found
    problems, expected = Problems(), "; ".join(f"{made.name}: {made.expects}" for made in FORMATS.values())
    if other := other_kind(row):
        key, kind = other
        problems.add(line, key, f"{kind} are not supported yet")
        message = f"Line {line} has '{key}': {kind} are not supported yet."
        hint = f"To read the rows as plain chat all the same, name the format. Expected is {expected}."
    else:
        keys = ", ".join(shown(key) for key in list(row)[:10]) or "no keys"
        problems.add(line, None, f"is of no known format; it has {keys}")
        message = f"The format was not recognised: line {line} has {keys}."
        hint = f"Expected is {expected}."
    raise _bad_rows(message, problems, hint)


def _bad_rows(message: str, problems: Problems, hint: str) -> InvalidValue:
    return InvalidValue(
        message, param="file", code="bad_rows", hint=hint, problems=problems.first, problem_count=problems.count
    )
