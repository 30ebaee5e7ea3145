"""Folders of models that a test may spoil."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO_BASE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo base model that a test may spoil."""
    return Path(shutil.copytree(DEMO_BASE, tmp_path / "model"))


def config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


CODE = """
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

Path({marker!r}).touch()

class OwnConfig(Qwen2Config):
    model_type = "own"

class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A model that only its own code can load, and the file that is there once that ran."""
    marker = tmp_path / "it ran"
    (folder / "modeling_own.py").write_text(CODE.format(marker=str(marker)))
    auto_map = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config(folder, model_type="own", architectures=["OwnForCausalLM"], auto_map=auto_map)
    return folder, marker
