"""The embedded engine: transformers in a process of ours, for machines where vLLM cannot be installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

from app.kit.processes import python
from app.settings import Settings
from worker.engine.protocol import Launch, weight_bytes

# An estimate of what torch, transformers and PEFT take beside the weights, on the safe side.
PROCESS_BYTES = 2**30


def command(launch: Launch, settings: Settings) -> list[str]:
    """`embedded_server.py` with this interpreter, whose environment has torch, transformers and PEFT."""
    arguments = {
        "--model": str(launch.path),
        "--served-model-name": launch.name,
        "--port": str(launch.port),
        "--max-model-len": str(settings.max_model_len),
    }
    if launch.template is not None:
        arguments["--chat-template"] = str(launch.template)
    flags = ["--trust-remote-code"] if launch.own_code else []
    words = [word for pair in arguments.items() for word in pair]
    return python("worker.engine.embedded_server", *words, *flags)


def features(launch: Launch, settings: Settings) -> dict[str, Any]:
    """None: it answers in plain text."""
    return {"engine": "embedded", "tools": None, "reasoning": None, "response_format": False}


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment, with one core left to the others."""
    threads = {"OMP_NUM_THREADS": str(max(1, (psutil.cpu_count(logical=False) or 2) - 1))}
    return threads | os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def memory_needed(path: Path, settings: Settings) -> int:
    """Weights, the KV cache of the one generation at a time, and the process."""
    return int(weight_bytes(path) * 1.5) + PROCESS_BYTES


def memory_available(settings: Settings) -> int:
    """The machine's free memory."""
    return psutil.virtual_memory().available
