"""burnish datasets."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run
from tests.cli.terminal import Terminal, table


def test_an_uploaded_file_is_listed_shown_and_deleted(run: Run, rows: Path) -> None:
    added = run("datasets", "add", rows, "--name", "mine", "--format", "alpaca")
    assert added.exit_code == 0, added.output
    (made,) = table(added.stdout)
    id, size = made["id"], str(rows.stat().st_size)
    assert (made["name"], made["format"], made["rows"], made["bytes"]) == ("mine", "alpaca", "20", size)
    assert id in [each["id"] for each in table(run("datasets", "list").stdout)]
    shown = dict(line.split("\t") for line in run("datasets", "show", id).stdout.splitlines())
    assert (shown["id"], shown["rows"]) == (id, "20")
    assert run("datasets", "delete", id).stderr == f"Deleted dataset mine ({id}).\n"
    gone = run("datasets", "show", id)
    assert (gone.exit_code, gone.stdout) == (1, "")
    assert id in gone.stderr
    assert "Hint:" in gone.stderr


def test_the_name_is_the_files_unless_given(run: Run, rows: Path) -> None:
    assert json.loads(run("datasets", "add", rows, "--json").stdout)["name"] == "rows.jsonl"


def test_bad_rows_are_listed_by_line(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n')
    result = run("datasets", "add", bad)
    assert result.exit_code == 1
    assert result.stdout == ""
    line = next(line for line in result.stderr.splitlines() if line.startswith("2\t"))
    assert "output" in line


def test_a_list_says_how_to_see_the_rest(run: Run, dataset: str, rows: Path) -> None:
    rows.write_text(rows.read_text().replace("answer", "another"))
    newest = json.loads(run("datasets", "add", rows, "--json").stdout)["id"]
    page = run("datasets", "list", "--limit", "1")
    assert [each["id"] for each in table(page.stdout)] == [newest]
    assert f"--after {newest}" in page.stderr
    assert dataset in run("datasets", "list", "--after", newest).stdout


def test_a_terminal_shows_a_table_with_headings(service: str, dataset: str) -> None:
    with Terminal(service, "datasets", "list") as terminal:
        terminal.until("created")
        terminal.until(dataset)
        assert terminal.end() == 0


def test_a_terminal_shows_the_upload(service: str, rows: Path) -> None:
    with Terminal(service, "datasets", "add", str(rows)) as terminal:
        terminal.until("Uploading")
        terminal.until("alpaca")
        assert terminal.end() == 0
