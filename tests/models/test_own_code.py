"""A model's own code in the trainer: it runs where that is said, and nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.canonical import SCHEMAS
from tests.conftest import REPOSITORY
from tests.models.own import config, folder, own

__all__ = ["folder", "own"]


def test_it_runs_where_it_may_and_nowhere_else(own: tuple[Path, Path]) -> None:
    folder, marker = own
    refused = _trained(folder, own_code=False)
    assert refused.returncode == 1
    assert "model_unreadable" in refused.stdout
    assert not marker.exists()
    trained = _trained(folder, own_code=True)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert marker.exists()


def test_it_does_not_run_where_it_is_not_needed(own: tuple[Path, Path]) -> None:
    folder, marker = own
    config(folder, model_type="qwen2")
    assert _trained(folder, own_code=False).returncode == 0
    assert not marker.exists()


def _trained(folder: Path, own_code: bool) -> subprocess.CompletedProcess[str]:
    """A step of `python -m worker.trainer` on the model."""
    work = folder.parent / f"work-{own_code}"
    (work / "out").mkdir(parents=True)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}] * 4, SCHEMAS["chat"]), work / "rows")
    spec = {
        "job": "job_1", "attempt": 1, "spec": {"hyperparameters": {"max_steps": 1, "learning_rate": 0.01, "epochs": 1}},
        "base_model": str(folder), "chat_template": None, "own_code": own_code, "rows": str(work / "rows"), "threads": 1,
    }  # fmt: skip
    (work / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "worker.trainer", str(work / "spec.json"), str(work / "out")]
    environment = {"PATH": os.environ["PATH"], "HOME": str(work), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
