"""Seconds from POST /jobs to the first optimiser step, with a trainer that waited and with one that starts cold.

    python benchmarks/first_step.py
    python benchmarks/first_step.py --redis redis://127.0.0.1:6379/8 --postgres postgresql://…/empty_database
    python benchmarks/first_step.py --llamafactory /path/to/venv

A measurement ends when `GET /jobs/{id}/metrics`, asked every 20 ms, has step 1. Cold is the same with the waiting trainer
killed before. Beside it: `load_model` alone, in a fresh process whose imports are done; and from the start of
`llamafactory-cli train` on the same rows, batch and rank to its first logged step. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from app.kit.processes import python
from app.models.service import DEMO_BASE
from demo.service import made, start_service
from demo.text import sample_rows

BATCH, RANK, STEPS, ROWS = 16, 8, 3, 640
LOAD = """
import sys, time
from worker.trainer.waiting import import_all
import_all()
from worker.trainer.base import Base, load_model
from worker.trainer.precision import compute_dtype
began = time.perf_counter()
load_model(Base(sys.argv[1]), compute_dtype())
print(time.perf_counter() - began)
"""


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the service below is ended too
    rows = [dict(row) for row in sample_rows(ROWS, seed=1)]
    found = {"load the model alone": [load(options.model) for _ in range(options.times)]}
    show(found)
    columns = {"SQLite queue": {}}
    if options.redis and options.postgres:
        columns["Redis"] = {"BURNISH_BROKER_URL": options.redis, "BURNISH_DATABASE_URL": options.postgres}
    for name, environment in columns.items():
        show(first_steps(name, environment, options, rows))
    if options.llamafactory:
        show({"llamafactory-cli train": [llamafactory(options, rows) for _ in range(options.times)]})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="From POST /jobs to the first optimiser step.")
    parser.add_argument("--model", type=Path, default=DEMO_BASE, help="directory of the base model")
    parser.add_argument("--times", type=int, default=3, help="measurements of each")
    parser.add_argument("--redis", default="", help="URL of an empty Redis database, with --postgres")
    parser.add_argument("--postgres", default="", help="URL of an empty PostgreSQL database")
    parser.add_argument("--llamafactory", type=Path, help="an environment that has LLaMA-Factory 0.9.5")
    return parser.parse_args()


def show(found: dict[str, list[float]]) -> None:
    for name, seconds in found.items():
        print(f"| {name} | {' · '.join(f'{each:.1f}' for each in seconds)} |", flush=True)


def load(model: Path) -> float:
    command = [sys.executable, "-P", "-c", LOAD, str(model.resolve())]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def first_steps(
    name: str, environment: dict[str, str], options: argparse.Namespace, rows: list[dict[str, Any]]
) -> dict[str, list[float]]:
    """The seconds of each way on one service."""
    found: dict[str, list[float]] = {f"POST /jobs, {name}, warm": [], f"POST /jobs, {name}, cold": []}
    with tempfile.TemporaryDirectory() as home:
        process, url = start_service({"BURNISH_HOME": home, "BURNISH_ENGINE": "embedded"} | environment)
        try:
            with httpx.Client(base_url=url, timeout=600) as client:
                made(client.post("/models", json={"name": "measured", "source": str(options.model.resolve())}))
                body = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
                dataset = made(client.post("/datasets", params={"name": "rows"}, content=body))["id"]
                for way, seconds in found.items():
                    for _ in range(options.times):
                        waiting = wait_for_spare(home)
                        if way.endswith("cold"):
                            waiting.kill()
                        seconds.append(measure(client, dataset))
        finally:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
    return found


def wait_for_spare(home: str) -> psutil.Process:
    """The trainer of this home that waits, once it has used no processor time for two seconds."""
    while True:
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                if command != python("worker.trainer", "--wait", str(Path(home).resolve())):
                    continue
                before = process.cpu_times().user
                time.sleep(2)
                if before > 1 and process.cpu_times().user == before:
                    return process
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        time.sleep(0.2)


def measure(client: httpx.Client, dataset: str) -> float:
    """From the request to its first step; then the job is let end."""
    began = time.perf_counter()
    job = made(
        client.post(
            "/jobs",
            json={
                "base_model": "measured", "dataset": dataset, "deploy": {"mode": "none"}, "method": {"rank": RANK},
                "check": {"scorecard": False},  # whose first half comes before the first step
                "hyperparameters": {"batch_size": BATCH, "max_steps": STEPS},
            },
        )
    )  # fmt: skip
    while not made(client.get(f"/jobs/{job['id']}/metrics"))["data"]:
        if (now := made(client.get(f"/jobs/{job['id']}")))["status"] == "failed":
            sys.exit(str(now["error"]))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    while made(client.get(f"/jobs/{job['id']}"))["status"] != "succeeded":
        time.sleep(0.2)
    return seconds


def llamafactory(options: argparse.Namespace, rows: list[dict[str, Any]]) -> float:
    """From the start of the process to the line that tells the loss of its first step."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "rows.json").write_text(json.dumps(rows))
        (work / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
        (work / "torchaudio").mkdir()  # imported at its start, and not needed
        (work / "torchaudio/__init__.py").touch()
        settings = {
            "model_name_or_path": str(options.model.resolve()), "stage": "sft", "do_train": True, "finetuning_type": "lora",
            "lora_rank": RANK, "lora_target": "all", "dataset": "rows", "dataset_dir": folder, "template": "qwen",
            "output_dir": str(work / "out"), "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1,
            "max_steps": STEPS, "logging_steps": 1, "use_cpu": True, "report_to": "none", "cutoff_len": 2048,
        }  # fmt: skip
        (work / "job.yaml").write_text(yaml.safe_dump(settings))
        command = [str(options.llamafactory / "bin/llamafactory-cli"), "train", str(work / "job.yaml")]
        environment = os.environ | {"PYTHONPATH": folder, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
        )
        assert process.stdout is not None
        seen, seconds = [], None
        for line in process.stdout:
            seen.append(line)
            if seconds is None and "'loss'" in line:
                seconds = time.perf_counter() - began
        if process.wait() or seconds is None:
            sys.exit("".join(seen[-20:]))
        return seconds


if __name__ == "__main__":
    main()
