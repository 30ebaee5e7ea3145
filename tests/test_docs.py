"""Docs and deployment files say what the code does."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from app.cli.processes import COMMANDS
from app.datasets.problems import CODES
from app.settings import Settings
from tests.conftest import REPOSITORY


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
    for path in ("README.md", "docs/api.md", "docs/operations.md", "docs/architecture.md", "docker-compose.yml"):
        assert written_settings(path) <= set(Settings.model_fields), path


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
    for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")):
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
