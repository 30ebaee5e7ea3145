"""The main job, shown: upload a sample dataset, fine-tune the demo base, and ask both the same held-out questions."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.kit.processes import python
from app.settings import get_settings
from demo.service import ask, ask_all, is_up, start_service, user_turn
from demo.text import sample_rows

TRAINING_ROWS, HELDOUT_ROWS, SHOWN_ROWS = 1600, 200, 6

console = Console()


def main() -> None:
    began = time.monotonic()
    settings = get_settings()
    url = f"http://127.0.0.1:{settings.port}"
    if is_up(url):
        sys.exit(f"Something answers at {url} already. End it, or choose another port: BURNISH_PORT=8001 make demo")
    console.rule("Burnish: fine-tune a model and talk to it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what is started below is ended
    with console.status("Starting the service: API, workers, engine"):
        own = {name: value for name, value in os.environ.items() if name.startswith("BURNISH_")}
        try:
            process, url = start_service(own | {"BURNISH_PORT": str(settings.port)})
        except RuntimeError as error:  # it has said why
            sys.exit(str(error))
    try:
        with httpx.Client(base_url=url, timeout=settings.engine_wait_seconds + 60) as client:
            show(client, settings.home / "demo")
    finally:
        with console.status("Ending the service"):
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
    console.print(f"[dim]All of this took {time.monotonic() - began:.0f} s.[/]")


def show(client: httpx.Client, folder: Path) -> None:
    """The road itself, a paragraph a step."""
    console.print(
        f"\n[bold]1. A dataset[/]: {TRAINING_ROWS} short product reviews, and what a JSON answer about each would be"
    )
    path = write_rows(folder / "reviews.jsonl")
    dataset = post(client, "/datasets", params={"name": "reviews"}, content=path.read_bytes())
    console.print(
        f"   {dataset['id']}: {dataset['rows']} rows, {dataset['format']}, {dataset['bytes']:,} bytes, all checked"
    )

    console.print("\n[bold]2. A job[/]: a LoRA on [cyan]demo-base[/], with every hyperparameter at its default")
    job = post(client, "/jobs", json={"base_model": "demo-base", "dataset": dataset["id"]})
    watch = python("app.cli", "--url", str(client.base_url), "jobs", "watch", job["id"])
    watched = subprocess.run(watch, check=False)
    job = client.get(f"/jobs/{job['id']}").json()
    if watched.returncode or job["status"] != "succeeded":
        sys.exit(f"The job is {job['status']}: {job['error']}")
    tuned = job["model"]["name"]

    console.print("\n[bold]3. The same questions to both[/], none of which was in the dataset")
    held_out = sample_rows(HELDOUT_ROWS, seed=2, split="heldout")
    answers = {}
    with Progress(console=console, transient=True) as progress:
        for name in ("demo-base", tuned):
            task = progress.add_task(f"asking {name}", total=None)
            ask(client, name, "Hello")  # the base's engine may still be starting
            answers[name] = ask_all(client, name, [user_turn(row) for row in held_out], at_once=16)
            progress.remove_task(task)
    print_answers(held_out, answers["demo-base"], answers[tuned])
    for name, given in answers.items():
        right = sum(answer == row["output"] for answer, row in zip(given, held_out, strict=True))
        console.print(f"   {name}: [bold]{right / HELDOUT_ROWS:.1%}[/] of {HELDOUT_ROWS} held-out rows exactly right")

    console.print("\n[bold]4. The same by hand[/]: [cyan]make up[/] in another terminal, then")
    console.print(by_hand(client, path, dataset["id"], job["id"], tuned, held_out[0]), highlight=False, soft_wrap=True)


def write_rows(path: Path) -> Path:
    """The sample dataset as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = sample_rows(TRAINING_ROWS, seed=1)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def post(client: httpx.Client, path: str, **request: Any) -> dict[str, Any]:
    """The object that was made; a refusal ends the program with its message."""
    answer = client.post(path, **request)
    if answer.is_error:
        error = answer.json()["error"]
        sys.exit(f"POST {path}: {error['message']} {error['hint'] or ''}")
    return dict(answer.json())


def print_answers(rows: list[dict[str, str]], base: list[str], tuned: list[str]) -> None:
    table = Table(show_lines=True)
    for column in ("review", "base model", "fine-tune", "right answer"):
        table.add_column(column, overflow="fold", ratio=1)
    for row, before, after in list(zip(rows, base, tuned, strict=True))[:SHOWN_ROWS]:
        colour = "green" if after == row["output"] else "red"
        table.add_row(row["input"], before[:160], f"[{colour}]{after}[/]", row["output"])
    console.print(table)


def by_hand(client: httpx.Client, path: Path, dataset: str, job: str, model: str, row: dict[str, str]) -> str:
    """The curl lines of every step."""
    url = str(client.base_url).rstrip("/")
    body = {"model": model, "messages": [{"role": "user", "content": user_turn(row)}], "temperature": 0}
    chat = shlex.quote(json.dumps(body, ensure_ascii=False))
    start = shlex.quote(json.dumps({"base_model": "demo-base", "dataset": dataset}))
    json_type = "-H 'Content-Type: application/json'"
    return "\n".join(
        [
            f"   curl -X POST -T {path} '{url}/datasets?name=reviews'",
            f"   curl {url}/jobs {json_type} -d {start}",
            f"   curl {url}/jobs/{job}",
            f"   curl -N -H 'Accept: text/event-stream' {url}/jobs/{job}/events",
            f"   curl {url}/v1/chat/completions {json_type} -d {chat}",
        ]
    )


if __name__ == "__main__":
    main()
