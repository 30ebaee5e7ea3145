"""What the import of training configurations knows of LLaMA-Factory is what its newest release says."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from app.cli import llamafactory_keys as keys

pytestmark = pytest.mark.peer
# Keys that older releases of transformers had: files that people have still name them.
OLDER = {"group_by_length", "warmup_ratio"}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """LLaMA-Factory's own keys and their defaults, read from its source; a default that is computed is None."""
    folder = tmp_path_factory.mktemp("peer")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "llamafactory"]
    subprocess.run(download, check=True)
    found: dict[str, Any] = {}
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).match("llamafactory/hparams/*_args.py"):
                found |= _fields(ast.parse(archive.read(name)))
    return found


def _fields(module: ast.Module) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            default = next((word.value for word in node.value.keywords if word.arg == "default"), None)
            found[node.target.id] = default.value if isinstance(default, ast.Constant) else None
    return found


def test_every_key_that_is_read_is_one_of_its_keys(arguments: dict[str, Any]) -> None:
    ours = {*keys.SAME, *keys.READ, *keys.SETTLED, *keys.NEUTRAL, *keys.DEFAULTS}
    transformers_own = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert ours - {*arguments} - transformers_own == OLDER


def test_its_defaults_are_the_ones_that_are_filled_in(arguments: dict[str, Any]) -> None:
    shared = keys.DEFAULTS.keys() & arguments.keys()
    assert len(shared) > 5
    assert {key: keys.DEFAULTS[key] for key in shared} == {key: arguments[key] for key in shared}
