"""burnish models."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.terminal import line_with, started, table
from tests.cli.work import change_model
from tests.conftest import DEMO_BASE, eventually


def test_a_directory_is_registered_by_its_full_path(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(DEMO_BASE.parent)
    added = run("models", "add", "here", DEMO_BASE.name, "--json")
    assert json.loads(added.stdout)["source"] == str(DEMO_BASE)
    assert "here" in run("models", "list", "--kind", "base").stdout
    assert run("models", "delete", "here").stderr.startswith("Deleted model here (model_")
    assert run("models", "show", "here").exit_code == 1


def test_a_template_is_sent_from_its_file(run: Run, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% if %}")
    refused = run("models", "add", "odd", DEMO_BASE, "--chat-template", template)
    assert refused.exit_code == 1
    assert "Field: chat_template" in refused.stderr


def test_a_template_has_a_name_or_arguments(run: Run, tmp_path: Path) -> None:
    name = f"t-{tmp_path.name[-12:]}".replace("_", "-")
    given = (
        "--chat-template",
        "chatml",
        "--template-argument",
        "enable_thinking=false",
        "--template-argument",
        "tone=dry",
    )
    added = run("models", "add", name, DEMO_BASE, *given, "--json")
    assert json.loads(added.stdout)["template_arguments"] == {"enable_thinking": False, "tone": "dry"}
    refused = run("models", "add", "odd", DEMO_BASE, "--chat-template", "llama3")
    assert "<|eot_id|>" in refused.stderr
    assert "is not NAME=VALUE" in run("models", "add", "odd", DEMO_BASE, "--template-argument", "dry").stderr


def test_an_architecture_alone_is_asked_for(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(DEMO_BASE, tmp_path / "architecture", ignore=shutil.ignore_patterns("*.safetensors"))
    refused = run("models", "add", "bare", folder)
    assert "architecture_only" in refused.stderr
    added = run("models", "add", "bare", folder, "--architecture-only", "--json")
    assert json.loads(added.stdout)["parameters"] is None
    assert "bare" in run("models", "list").stdout


def test_a_download_is_waited_for(service: str, run: Run) -> None:
    with started(service, "models", "add", "far", "hf://owner/name", "--json") as process:
        line_with(process.stderr, "Downloading hf://owner/name")
        change_model("far", progress={"bytes": 5, "total_bytes": 10})
        change_model("far", status="ready", progress=None)
        output, _ = process.communicate(timeout=20)
    assert (process.returncode, json.loads(output)["status"]) == (0, "ready")


def test_a_download_that_fails_says_why(service: str) -> None:
    with started(service, "models", "add", "lost", "hf://owner/lost") as process:
        line_with(process.stderr, "Downloading")
        change_model("lost", status="failed", error={"code": "x", "message": "No such model.", "hint": "Look it up."})
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "No such model." in errors
    assert "Hint: Look it up." in errors


def test_nobody_waits_with_no_wait(run: Run) -> None:
    (later,) = table(run("models", "add", "later", "hf://owner/later", "--no-wait").stdout)
    assert later["status"] == "downloading"


def test_a_directory_that_is_not_here_is_left_to_the_service(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert not os.path.exists(missing)
    assert str(missing) in run("models", "add", "nowhere", missing).stderr
    eventually(lambda: "nowhere" not in run("models", "list").stdout, 1)
