"""Speed and memory of an upload, beside three ways to parse the same file on this machine, in one run.

    python benchmarks/ingest.py                      # 100 MB
    python benchmarks/ingest.py --megabytes 1000

Prints a Markdown table. An upload is a raw body over HTTP on loopback: received, hashed, stored, every row checked, answered.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import httpx
import orjson
import psutil
from datasets import load_dataset
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from demo.service import start_service
from demo.text import sample_rows

CHUNK_BYTES = 2**20


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class Row(BaseModel):
    messages: list[Message]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of an upload.")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the file")
    megabytes = parser.parse_args().megabytes
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        rows = generate(file, megabytes * 10**6)
        size = file.stat().st_size / 1e6
        print(f"{rows} rows, {size:.0f} MB", file=sys.stderr)
        orjson_rate = size / timed(lambda: parse(file, orjson.loads))
        pydantic_rate = size / timed(lambda: parse(file, lambda line: Row.model_validate(json.loads(line))))
        datasets_rate = size / timed(
            lambda: load_dataset("json", data_files=str(file), cache_dir=f"{folder}/cache", split="train")
        )
        seconds, idle, peak = upload(file, Path(folder) / "home")
        rate = size / seconds
        print("| way | MB/s | of bare orjson | peak memory above idle |")
        print("|---|---|---|---|")
        print(f"| bare `orjson.loads`, line by line | {orjson_rate:.0f} | 100 % | |")
        print(
            f"| upload: received, hashed, stored, checked | {rate:.0f} | {rate / orjson_rate:.0%} | {peak - idle:.0f} MB |"
        )
        print(f"| `json.loads` and pydantic | {pydantic_rate:.0f} | {pydantic_rate / orjson_rate:.0%} | |")
        print(f"| `datasets.load_dataset('json')` | {datasets_rate:.0f} | {datasets_rate / orjson_rate:.0%} | |")


def generate(file: Path, size: int) -> int:
    """Writes chat rows of one to three exchanges until the file has `size` bytes; returns how many."""
    sentences = [row["output"] for row in sample_rows(2000, seed=1)] + [
        row["input"] for row in sample_rows(2000, seed=2)
    ]
    draw, written, rows = random.Random(1), 0, 0
    with file.open("wb") as stream:
        while written < size:
            messages = [{"role": "system", "content": "You are helpful."}]
            for _ in range(draw.randint(1, 3)):
                messages.append({"role": "user", "content": " ".join(draw.choices(sentences, k=3))})
                messages.append({"role": "assistant", "content": " ".join(draw.choices(sentences, k=10))})
            written += stream.write(orjson.dumps({"messages": messages}) + b"\n")
            rows += 1
    return rows


def timed(run: Callable[[], object]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def parse(file: Path, load: Callable[[bytes], object]) -> None:
    """Parses every line and keeps none."""
    with file.open("rb") as stream:
        for line in stream:
            load(line)


def upload(file: Path, home: Path) -> tuple[float, float, float]:
    """(seconds, memory of the API before, its peak), memory in MB, that of the processes which check uploads with it."""
    limit = str(file.stat().st_size + 1)
    environment = {"BURNISH_HOME": str(home), "BURNISH_ENGINE": "embedded", "BURNISH_MAX_UPLOAD_BYTES": limit}
    process, url = start_service(environment)
    try:
        family = [each for each in psutil.Process(process.pid).children(recursive=True) if "api" in each.cmdline()]
        api = max(family, key=lambda each: each.memory_info().rss)  # the other one only guards it
        with httpx.Client(base_url=url, timeout=3600) as client:
            warm = b"".join(orjson.dumps({"instruction": str(number), "output": "a"}) + b"\n" for number in range(1000))
            client.post("/datasets", content=warm).raise_for_status()
            idle, stop, seen = memory(api), threading.Event(), [0]

            def watch() -> None:
                while not stop.wait(0.02):
                    seen.append(max(seen.pop(), memory(api)))

            watcher = threading.Thread(target=watch)
            watcher.start()
            seconds = timed(lambda: client.post("/datasets", content=chunks(file)).raise_for_status())
            stop.set()
            watcher.join()
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
    return seconds, idle / 1e6, seen[0] / 1e6


def memory(process: psutil.Process) -> int:
    """Bytes that a process and those below it hold."""
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])


def chunks(file: Path) -> Iterator[bytes]:
    """The file, a megabyte at a time."""
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


if __name__ == "__main__":
    main()
