"""The one pass over an uploaded file: what is wrong with which row, and what the rows are like."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from app.datasets.containers import Container
from app.datasets.formats.layout import Reader
from app.datasets.mending import mend
from app.datasets.problems import CODES, Problem, problem
from app.datasets.reading import Options, Read, RowReader
from app.datasets.statistics import LONG_ROW_CHARACTERS, MAX_LISTED, Statistics

MAX_BAD_ROWS = 100_000


class Findings(NamedTuple):
    """What reading a file found. `refused` says in words why there can be no dataset of it, or is None; then `format` and
    `kind` may be None too."""

    format: str | None
    kind: str | None
    container: str
    rows: int
    bad_rows: int
    repairable_rows: int
    complete: bool
    problems: list[dict[str, Any]]
    statistics: dict[str, Any]
    refused: str | None


class Listing:
    """Problems as they are found: written as NDJSON, up to a limit of each severity, and counted by code."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._encode = msgspec.json.Encoder().encode
        self._written = {"error": 0, "warning": 0}
        self.counts: dict[str, int] = {}
        self.first: dict[str, Problem] = {}

    def add(self, found: Problem) -> None:
        self.counts[found.code] = self.counts.get(found.code, 0) + 1
        self.first.setdefault(found.code, found)
        if self._written[found.severity] < MAX_LISTED:
            self._written[found.severity] += 1
            self._file.write(self._encode(found) + b"\n")

    def summary(self) -> list[dict[str, Any]]:
        """The first problem of each code with the code's count, errors first."""
        ordered = sorted(self.first.values(), key=lambda found: found.severity)
        return [msgspec.to_builtins(found) | {"count": self.counts[found.code]} for found in ordered]


def examine(container: Container, options: Options, folder: Path) -> Findings:
    """Reads a container and checks every row. The problems are written to `folder`/problems, a JSON object a line."""
    statistics = Statistics(folder / "fingerprints")
    bad, repairable, complete = 0, 0, True
    with (folder / "problems").open("wb") as file:
        rows, listing = RowReader(container, options), Listing(file)
        for read in rows:
            if isinstance(read.row, Problem):
                listing.add(read.row)
                bad += 1
                repairable += rows.mended(read.value, mend) is not None
                complete = not read.final and bad < MAX_BAD_ROWS
                if not complete:
                    break
                continue
            characters, controls = statistics.add(read.line, read.row)
            if controls or read.doubled or characters > LONG_ROW_CHARACTERS:
                for warning in _warnings(read, characters, controls):
                    listing.add(warning)
        _compare(statistics, listing)
        refused = _refusal(rows.reader, statistics, listing, bad, complete and options.on_bad_rows == "drop")
    labels = statistics.labels
    return Findings(
        format=rows.reader.format if rows.reader else None,
        kind=rows.reader.kind if rows.reader else None,
        container=rows.container,
        rows=statistics.rows + bad,
        bad_rows=bad,
        repairable_rows=repairable,
        complete=complete,
        problems=listing.summary(),
        statistics={
            "turns": statistics.turns,
            "characters": statistics.characters,
            "repeats": listing.counts.get("repeated_row", 0),
            "labels": dict(labels.most_common()) if labels else None,
            "scripts": statistics.scripts(),
            "references": statistics.references,
        },
        refused=refused,
    )


def _warnings(read: Read, characters: int, controls: bool) -> Iterator[Problem]:
    """What may not be meant in a row that can be trained on."""
    if read.doubled:
        yield problem(read.line, "consecutive_user_turns", "is a user's turn right after another", read.doubled)
    if characters > LONG_ROW_CHARACTERS:
        yield problem(read.line, "long_row", f"has {characters} characters", None, str(characters))
    if controls:
        yield problem(read.line, "control_characters", "has control characters")


def _compare(statistics: Statistics, listing: Listing) -> None:
    for code, message, lines, count in statistics.duplicates():
        for line in lines:
            listing.add(problem(line, code, message))
        if lines:
            listing.counts[code] = count


def _refusal(reader: Reader | None, statistics: Statistics, listing: Listing, bad: int, may_drop: bool) -> str | None:
    """Why the file cannot become a dataset, the problem that says it being listed; None where it can."""
    labels = statistics.labels
    if not bad and not statistics.rows:
        listing.add(problem(None, "no_rows", "has no rows"))
        return "The file has no rows."
    if "unknown_format" in listing.first:
        first = listing.first["unknown_format"]
        return f"The format was not recognised: line {first.line} has {first.found}."
    if bad and not (may_drop and statistics.rows):
        first = next(found for found in listing.first.values() if CODES[found.code].severity == "error")
        where = f"line {first.line}" + (f", {first.path}" if first.path else "")
        total = statistics.rows + bad
        return f"{bad} of {total} rows cannot be trained on; the first: {where}: {first.message}."
    if reader and reader.kind == "labels" and statistics.rows and labels is not None and len(labels) == 1:
        listing.add(problem(None, "single_label", f"has no label but '{next(iter(labels))}'"))
        return f"All rows have the label '{next(iter(labels))}'; both are needed."
    return None
