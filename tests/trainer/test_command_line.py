"""The contract with the parent process: arguments, standard output, exit status, SIGTERM."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

from app.jobs.spec import TrainerSpec
from tests.conftest import REPOSITORY


def start(spec: TrainerSpec, folder: Path, log: IO[str]) -> subprocess.Popen[str]:
    (folder / "spec.json").write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "worker.trainer", str(folder / "spec.json"), str(folder / "out")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=REPOSITORY)


def test_sigterm_ends_after_the_step_with_status_3(make_spec: Callable[..., TrainerSpec], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = start(make_spec(hyperparameters={"epochs": 1000}), tmp_path, log)
        assert process.stdout is not None
        types = []
        for line in process.stdout:  # every line is an event: nothing else may reach standard output
            types.append(json.loads(line)["type"])
            if types.count("step") == 3:
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 3, (tmp_path / "log").read_text()
    assert types.count("step") < 5000
    assert {"finished", "failed"}.isdisjoint(types)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_failure_is_the_last_event_and_status_1(make_spec: Callable[..., TrainerSpec], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = start(make_spec(rows=str(tmp_path / "missing.parquet")), tmp_path, log)
        output, _ = process.communicate()
    assert process.returncode == 1
    failed = json.loads(output.splitlines()[-1])
    assert (failed["type"], failed["code"]) == ("failed", "trainer_error")
    assert "missing.parquet" in failed["message"]
    assert failed["hint"]
