"""Hints of the service are shown with commands in place of HTTP requests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from app.cli import cli
from app.cli.hints import COMMANDS, in_commands
from tests.cli.commands import problem_of
from tests.cli.conftest import Run
from tests.conftest import REPOSITORY

REQUEST = re.compile(r"\b(?:GET|POST|PUT|PATCH|DELETE) /[^\s\"'`]*[\w}]")
# Requests that no command makes, on purpose: clients send them.
WITHOUT_COMMAND = {
    "POST /v1/completions": "burnish chat speaks chat alone",
    "POST /models/x/score": "scores are for programs",
    "GET /openapi.json": "only a client that makes up paths meets it",
}


def sentences(path: Path) -> Iterator[str]:
    """Texts of a module that name a request, docstrings and descriptions of fields left out; `x` stands for what is filled in."""
    tree = ast.parse(path.read_text())
    parts = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    documents = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    documents |= {node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "description"}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {node} & (parts | documents):
            yield node.value


def test_every_request_of_a_sentence_has_a_command_or_has_none_on_purpose() -> None:
    found, missing = set[str](), set[str]()
    for folder in ("app", "worker"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            if path.is_relative_to(REPOSITORY / "app/cli"):
                continue
            for text in sentences(path):
                found |= set(REQUEST.findall(text))
                missing |= {f"{request} in {path.name}" for request in REQUEST.findall(in_commands(text))
                            if request not in WITHOUT_COMMAND}  # fmt: skip
    assert len(found) > 20
    assert not missing


def test_every_command_of_the_table_exists() -> None:
    for command in COMMANDS.values():
        assert problem_of(typer.main.get_command(cli), command) is None, command


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        ("Register it with POST /models.", "Register it with `burnish models add`."),
        ("GET /models/qwen2.5-7b says how far it is.", "`burnish models show qwen2.5-7b` says how far it is."),
        ("See GET /jobs/{id}/logs, then stop.", "See `burnish jobs logs ID`, then stop."),
        ('PATCH /webhooks/hook_1 {"enabled": true}', "`burnish webhooks enable hook_1`"),
        ("choose one of GET /models?kind=reward.", "choose one of `burnish models list --kind reward`."),
        ("POST /models/judge/score", "POST /models/judge/score"),
    ],
)
def test_a_request_becomes_its_command(hint: str, shown: str) -> None:
    assert in_commands(hint) == shown


def test_a_refusal_names_the_command(run: Run, dataset: str) -> None:
    refused = run("jobs", "create", "nobody", dataset)
    assert "Hint: Register it with `burnish models add`, or choose one of `burnish models list`." in refused.stderr
    assert not REQUEST.search(run("jobs", "show", "job_none").stderr)
