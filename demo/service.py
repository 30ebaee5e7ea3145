"""The service as a child process, for the demo, the benchmarks and the system tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from app.kit.processes import python


def start_service(environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Starts `burnish up` in a session of its own, under `environment` and no other `BURNISH_*` variable.

    Returns the process (end it with SIGINT to its group) and the address, as soon as the API answers there. Raises
    `RuntimeError` where it ends before that.
    """
    port = environment.get("BURNISH_PORT") or str(free_port())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BURNISH_")}
    process = subprocess.Popen(
        python("app.cli", "up"),
        env=kept | dict(environment) | {"BURNISH_PORT": port},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_up(url):
            if process.poll() is not None:
                raise RuntimeError(f"the service ended with exit code {process.returncode} before it answered")
            time.sleep(0.1)
    except BaseException:  # an impatient Ctrl-C too: nobody else knows the process
        process.terminate()
        process.wait()
        raise
    return process, url


def is_up(url: str) -> bool:
    """Whether the API answers at `url`."""
    try:
        # Nothing is encrypted on loopback: reading the certificates would take longer than the call.
        return httpx.get(f"{url}/health", timeout=5, trust_env=False, verify=False).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def made(answer: httpx.Response) -> dict[str, Any]:
    """What an answer says. Ends the process, with the error's body, where it is an error."""
    if answer.is_error:
        sys.exit(answer.text)
    return dict(answer.json())


def ask(client: httpx.Client, model: str, content: str, max_tokens: int = 64) -> str:
    """The model's greedy answer to one user turn. Raises `RuntimeError` with the error's body."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    answer = client.post("/v1/chat/completions", json=body)
    if answer.is_error:
        raise RuntimeError(answer.text)
    return str(answer.json()["choices"][0]["message"]["content"])


def ask_all(
    client: httpx.Client, model: str, contents: list[str], max_tokens: int = 64, at_once: int = 32
) -> list[str]:
    """The model's greedy answers, in order, with `at_once` questions under way."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda content: ask(client, model, content, max_tokens), contents))


def user_turn(row: Mapping[str, str]) -> str:
    """What an alpaca row's user says: the instruction, then a newline and the input where there is one."""
    return f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]
