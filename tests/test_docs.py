"""Docs and deployment files say what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from app.cli import cli
from app.cli.processes import COMMANDS
from app.datasets.problems import CODES
from app.settings import Settings
from tests.cli.commands import problem_of, reference
from tests.conftest import REPOSITORY

PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))


def written_settings(path: str) -> set[str]:
    return {
        name.lower()
        for name in re.findall(r"BURNISH_(?!TEST_|URL\b|API_KEY\b)([A-Z_]+)", (REPOSITORY / path).read_text())
    }


def test_the_settings_table_is_complete_and_says_the_defaults() -> None:
    text = (REPOSITORY / "docs/operations.md").read_text()
    rows = {
        name: (default, meaning)
        for name, default, meaning in re.findall(r"^\| `BURNISH_(\w+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    }
    expected: dict[str, tuple[str, str | None]] = {}
    for name, field in Settings.model_fields.items():
        default: Any = field.default
        if isinstance(default, Path) and default.is_absolute():
            default = default.relative_to(Path(sys.prefix).parent)
        expected[name.upper()] = ("empty" if default == "" else f"`{default}`", field.description)
    assert rows == expected


def test_no_file_names_a_setting_that_is_not_there() -> None:
    for path in (
        *PAGES,
        *(REPOSITORY / name for name in ("docker-compose.yml", "deploy/nginx.conf", "deploy/Caddyfile")),
    ):
        assert written_settings(str(path)) <= set(Settings.model_fields), path


def test_the_compose_file_starts_commands_that_there_are_and_publishes_to_loopback_only() -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        if "build" in service:
            assert service["command"][0] in COMMANDS, name
            assert f"AS {service['build']['target']}\n" in (REPOSITORY / "Dockerfile").read_text()
            assert set(service["depends_on"]) <= set(compose["services"])
    named = {volume.split(":")[0] for service in compose["services"].values() for volume in service.get("volumes", [])}
    assert {volume for volume in named if volume.isalpha()} == set(compose["volumes"])


def test_every_link_in_the_docs_leads_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_no_file_is_longer_than_one_reads_in_a_sitting() -> None:
    for path in [
        *(REPOSITORY / "app").rglob("*.py"),
        *(REPOSITORY / "worker").rglob("*.py"),
        *(REPOSITORY / "demo").glob("*.py"),
    ]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_the_codes_of_problems_are_documented() -> None:
    table = (REPOSITORY / "docs" / "formats.md").read_text()
    documented = dict(re.findall(r"^\| `(\w+)` \| (error|warning) \|", table, re.MULTILINE))
    assert documented == {name: code.severity for name, code in CODES.items()}


def command_lines(text: str) -> set[str]:
    """Every `burnish …` of a page: in a sentence's code, and as a line of a block."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = {line.strip() for block in blocks for line in block.splitlines()}
    lines |= {line.strip() for line in re.findall(r"^ {4}(burnish .*)$", text, re.MULTILINE)}
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines |= {" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)}
    return {line.removeprefix(".venv/bin/") for line in lines if re.match(r"(\.venv/bin/)?burnish( |$)", line)}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_of_the_docs_exists_and_takes_what_it_is_given(page: Path) -> None:
    command = typer.main.get_command(cli)
    text = page.read_text().replace("\\|", "|")
    wrong = {line: problem for line in command_lines(text) if (problem := problem_of(command, line))}
    assert not wrong


def test_the_reference_of_commands_is_complete() -> None:
    text = (REPOSITORY / "docs" / "cli.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `burnish")]
    assert sorted(rows) == sorted(reference(typer.main.get_command(cli)))


def test_every_address_of_the_docs_is_one_of_the_service() -> None:
    from app.main import create_app

    paths = [re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) for path in create_app().openapi()["paths"]]
    found = 0
    for page in PAGES:
        for address in re.findall(r"http://127\.0\.0\.1:8000(/[^\s'\"`?)]*)", page.read_text()):
            if address in ("/v1", "/"):  # a base of paths
                continue
            found += 1
            assert any(re.fullmatch(path, address) for path in paths), f"{page.name}: {address}"
    assert found > 5
