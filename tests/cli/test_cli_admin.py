"""Projects, keys, secrets, usage and the audit log from the command line, in a service that has keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from typer.testing import Result

from app.kit.database import DEFAULT_PROJECT, writing
from app.projects import service as projects
from app.usage.service import Used, add
from tests.cli.conftest import Run
from tests.cli.terminal import Terminal, table


@pytest.fixture(scope="module")
def admin(service: str) -> Iterator[str]:
    """An admin's key, which commands send."""
    with pytest.MonkeyPatch.context() as patch:
        key = projects.create_key(DEFAULT_PROJECT, "admin", "boss", None)[1]
        patch.setenv("BURNISH_API_KEY", key)
        yield key


@pytest.fixture
def project(admin: str, run: Run) -> str:
    """The name of a project of its own."""
    name = f"team-{secrets.token_hex(4)}"
    assert run("projects", "create", name).exit_code == 0
    return name


def fields(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return dict(line.split("\t") for line in result.stdout.splitlines())


def test_a_project_is_limited_listed_and_deleted(run: Run, project: str) -> None:
    shown = fields(run("projects", "limits", project, "--storage-bytes", "10GiB", "--queued-jobs", 5))
    assert shown == {"storage_bytes": str(10 * 2**30), "queued_jobs": "5"}
    assert fields(run("projects", "limits", project, "--queued-jobs", "none")) == {"storage_bytes": str(10 * 2**30)}
    assert "no limits" in run("projects", "limits", project, "--storage-bytes", "none").stderr
    wrong = run("projects", "limits", project, "--queued-jobs", "many")
    assert (wrong.exit_code, "'many'" in wrong.stderr) == (2, True)
    assert project in [each["name"] for each in table(run("projects", "list").stdout)]
    id = fields(run("projects", "show", project))["id"]
    assert run("projects", "delete", project, input="n\n").exit_code == 1
    deleted = run("projects", "delete", project, input="y\n")
    assert deleted.exit_code == 0, deleted.output
    assert f"Deleted project {project} ({id})." in deleted.stderr
    assert run("projects", "show", project).exit_code == 1


def test_a_key_is_limited_rotated_and_revoked_by_its_name(run: Run, project: str) -> None:
    first = run("keys", "create", "--project", project, "--name", f"ci-{project}").stdout.strip()
    (row,) = [each for each in table(run("keys", "list").stdout) if each["name"] == f"ci-{project}"]
    assert fields(run("keys", "limits", row["id"], "--requests-per-minute", 600)) == {"requests_per_minute": "600"}
    rotated = run("keys", "rotate", f"ci-{project}")
    assert rotated.stdout.strip() not in ("", first)
    assert rotated.stdout.startswith("bsk_")
    revoked = run("keys", "revoke", f"ci-{project}")
    assert (revoked.stdout, revoked.stderr) == ("", f"Revoked key ci-{project} ({row['id']}).\n")
    assert row["id"] not in run("keys", "list").stdout


def test_a_secret_is_read_from_a_pipe_and_never_shown(run: Run, admin: str) -> None:
    assert run("secrets", "set", "hf_token", input="hf_piped\n").stderr == "Set secret hf_token.\n"
    (row,) = table(run("secrets", "list").stdout)
    assert row["name"] == "hf_token"
    assert "hf_piped" not in run("secrets", "list", "--json").stdout
    assert run("secrets", "delete", "hf_token").stderr == "Deleted secret hf_token.\n"
    assert run("secrets", "delete", "hf_token").exit_code == 1


def test_a_terminal_does_not_show_the_secret_that_is_typed(service: str, run: Run, admin: str) -> None:
    with Terminal(service, "secrets", "set", "typed") as terminal:
        terminal.until("Value (not shown): ")
        terminal.press("very-secret\n")
        terminal.until("Set secret typed.")
        assert terminal.end() == 0
        assert "very-secret" not in terminal.shown
    assert run("secrets", "delete", "typed").exit_code == 0


def test_usage_is_shown_by_day_model_and_key(run: Run, admin: str) -> None:
    with writing() as session:
        add(session, DEFAULT_PROJECT, None, "reader", Used(requests=2, input_tokens=30, gpu_seconds=65.0))
    (row,) = table(run("usage", "--model", "reader").stdout)
    assert (row["requests"], row["input_tokens"], row["gpu_seconds"]) == ("2", "30", "65.0")
    assert table(run("usage", "--model", "reader", "--until", "2000-01-01").stdout) == []
    wrong = run("usage", "--since", "yesterday")
    assert (wrong.exit_code, "Field: since" in wrong.stderr) == (1, True)


def test_the_audit_log_is_filtered_by_names(run: Run, project: str) -> None:
    run("keys", "create", "--project", project, "--name", f"audited-{project}")
    entries = table(run("audit", "--key", "boss", "--action", "project.create").stdout)
    assert entries
    assert {each["key_name"] for each in entries} == {"boss"}
    assert table(run("audit", "--project", project).stdout) == []
    assert len(table(run("audit", "--project", "default", "--limit", 1).stdout)) == 1


def test_what_is_not_allowed_says_how_to_send_a_key(run: Run, admin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BURNISH_API_KEY")
    refused = run("projects", "list")
    assert refused.exit_code == 1
    assert "BURNISH_API_KEY" in refused.stderr
    assert "`burnish keys create`" in refused.stderr


def test_a_terminal_shows_sizes_and_times_for_people(service: str, admin: str, project: str, run: Run) -> None:
    run("projects", "limits", project, "--storage-bytes", "1536MiB")
    with Terminal(service, "projects", "show", project) as terminal:
        terminal.until("1.5 GiB")
        assert terminal.end() == 0
