"""What commands print. In a terminal: tables for people. In a pipe or a file: tab-separated lines for programs, with values as
the service sent them, under a header of the service's field names."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

    from app.cli.failure import Failure

from app.cli.hints import in_commands

# Names and answers come from others: what would move a terminal's cursor or change its colours is shown as a mark.
_CONTROLS = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_IN_A_CELL = _CONTROLS | {ord("\n"): " ", ord("\t"): " "}


class Column(NamedTuple):
    """A column of a table: its heading in a terminal, the field it shows (`progress.step`), which is its heading elsewhere, and
    how a terminal shows the value. None: as the field's name suggests."""

    heading: str
    path: str
    shown: Callable[[Any], str] | None = None


def stdout() -> Console:
    """Where results go."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Where progress, remarks and failures go."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    # Made when it is used, and strict: FORCE_COLOR must not put control codes into a pipe.
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, soft_wrap=True)


def clean(text: str) -> str:
    """The text without control characters, new lines and tabs excepted."""
    return text.translate(_CONTROLS)


def say(text: str, style: str | None = None) -> None:
    """A line for the reader, which is no result."""
    stderr().print(clean(text), style=style)


def print_json(value: Any) -> None:
    """The object as the service sent it."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[Column], objects: Iterable[dict[str, Any]]) -> None:
    """A row for each object, under a header. A terminal is told where there are none."""
    console = stdout()
    if not console.is_terminal:
        print(*(column.path for column in columns), sep="\t")
        for object in objects:
            print(*(cell(column.path, _at(object, column.path)) for column in columns), sep="\t", flush=True)
        return
    rows = [[_shown(column, _at(object, column.path)) for column in columns] for object in objects]
    if not rows:
        say("There are none.")
        return
    console.print(_grid([column.heading for column in columns], rows), soft_wrap=False)


def print_object(object: dict[str, Any]) -> None:
    """A line for each field that has a value: its name, and the value. A field of a field has a dotted name."""
    pairs = [(name, value) for name, value in _fields(object) if name != "object"]
    console = stdout()
    if not console.is_terminal:
        for name, value in pairs:
            print(name, cell(name, value), sep="\t")
        return
    console.print(_grid([], [[name, for_people(name, value)] for name, value in pairs]), soft_wrap=False)


def show_failure(failure: Failure) -> None:
    """Message, field and hint of each refusal; the rows that were refused as a table."""
    console = stderr()
    console.print(clean(in_commands(failure.message)), style="bold red")
    if failure.problems:
        rows = [
            [plain(problem.get(key)) for key in ("line", "path")] + [problem_shown(problem)]
            for problem in failure.problems
        ]
        if console.is_terminal:
            console.print(_grid(["line", "path", "problem"], rows), soft_wrap=False)
        else:
            for row in rows:
                print(*row, sep="\t", file=sys.stderr)  # rich would make spaces of the tabs
    if failure.report:
        console.print(f"Report: {report_command(failure.report)}")
    _show_advice(failure.param, failure.hint)
    for other in failure.others:
        console.print(clean(in_commands(plain(other.get("message")))), style="bold red")
        _show_advice(other.get("param"), other.get("hint"))


def _show_advice(param: str | None, hint: str | None) -> None:
    for label, text in (("Field", param), ("Hint", hint)):
        if text:
            stderr().print(f"{label}: {clean(in_commands(text))}")


def problem_shown(problem: dict[str, Any]) -> str:
    """What is wrong, and how often."""
    count = problem.get("count") or 1
    return f"{plain(problem.get('message'))}{f' (and in {count - 1} more)' if count > 1 else ''}"


def report_command(report: str) -> str:
    """The line that shows a report."""
    return f"burnish datasets report {report}"


def plain(value: Any) -> str:
    """A value as one cell of a line: nothing for null, JSON for what is nested."""
    if value is None:
        return ""
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value, ensure_ascii=False).translate(_IN_A_CELL)
    return str(value).translate(_IN_A_CELL)


def cell(path: str, value: Any) -> str:
    """A field's value for a program: as it is, but sentences speak of commands."""
    text = plain(value)
    return in_commands(text) if _last_word(path) in _SENTENCES else text


def for_people(path: str, value: Any) -> str:
    """A field's value for a person, by the last word of the field's name: sizes, times and large numbers."""
    word = _last_word(path)
    if word in _NUMBERS and type(value) in (int, float):
        return _NUMBERS[word](value)
    if word == "at" and isinstance(value, str):
        return moment_shown(value)
    if type(value) is int and value >= 10_000:
        return f"{value:,}"
    return cell(path, value)


def _last_word(path: str) -> str:
    return path.rpartition(".")[2].rpartition("_")[2]


def _shown(column: Column, value: Any) -> str:
    if value is None:
        return ""
    shown = column.shown(value) if column.shown else for_people(column.path, value)
    return shown.translate(_IN_A_CELL)


def _at(object: dict[str, Any], path: str) -> Any:
    value: Any = object
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if _is_nested(value) else None
    if children is None:
        if value not in (None, []):
            yield name, value
        return
    for key, child in children:
        yield from _fields(child, f"{name}.{key}" if name else str(key))


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=bool(headings), pad_edge=False, header_style="bold")
    for index in range(max([len(headings), *(len(row) for row in rows)])):
        # The first column is what other commands are given: it is never cut.
        table.add_column(headings[index] if headings else "", no_wrap=index == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def bytes_shown(count: int) -> str:
    """1536 → `1.5 KiB`."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def count_shown(count: int) -> str:
    """5400000 → `5.4 M`."""
    number, unit = float(count), ""
    for larger in ("k", "M", "B"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.3g} {unit}".strip()


def moment_shown(moment: str) -> str:
    """An RFC 3339 time as this machine's clock reads it."""
    from datetime import datetime

    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration_shown(seconds: float) -> str:
    """3725 → `1:02:05`, 65 → `1:05`, 42 → `42 s`, 0.25 → `0.25 s`."""
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# How people are shown numbers, by the last word of the field's name.
_NUMBERS: dict[str, Callable[[Any], str]] = {
    "bytes": bytes_shown,
    "seconds": duration_shown,
    "parameters": count_shown,
    "seed": str,
}
# Fields whose values are sentences for people.
_SENTENCES = ("hint", "message", "error", "reason")
