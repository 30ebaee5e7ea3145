"""vLLM as a subprocess in an environment of its own: real vLLM on an NVIDIA GPU, its CPU build elsewhere."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from app.settings import Settings
from worker.engine.protocol import EngineError, Launch, weight_bytes

GIB = 2**30
CPU_KV_CACHE_GIB = 1
# Distinct adapters in one batch.
ADAPTER_SLOTS = 4
# Corrects vLLM's CPU build (see burnish_vllm.py in it). No other Python path reaches an engine.
PLUGIN = Path(__file__).parent / "vllm_plugin"
# Measured with a model of 7 M parameters: 2.4 GB of memory for three processes, besides the KV cache.
CPU_PROCESS_BYTES = int(2.5 * GIB)
# What vLLM 0.32 has code for, and refuses to load at all with adapters switched on.
WITHOUT_ADAPTERS = frozenset(
    [
        "BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM", "BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM",
        "FalconForCausalLM", "FalconMambaForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "Gemma3nForCausalLM",
        "Glm5NextForCausalLM", "HCXVisionV2ForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM",
        "KimiLinearForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM",
        "MiniMaxM3SparseForCausalLM", "OrionForCausalLM", "StableLmForCausalLM", "Step1ForCausalLM", "Step3TextForCausalLM",
        "Step3p5ForCausalLM", "Zamba2ForCausalLM",
    ]
)  # fmt: skip


def is_installed(settings: Settings) -> bool:
    """Whether vLLM is in the environment of `settings.vllm_python`, seen without importing it (which takes seconds)."""
    python = settings.vllm_python
    packages = python.parent.parent.glob("lib/python3*/site-packages/vllm/__init__.py")
    return os.access(python, os.X_OK) and any(packages)


@cache
def knows(architecture: str, python: Path) -> bool:
    """Whether the vLLM that is installed there has code for the architecture, seen without importing it."""
    registries = python.parent.parent.glob("lib/python3*/site-packages/vllm/model_executor/models/registry.py")
    return any(f'"{architecture}"' in registry.read_text() for registry in registries)


def command(launch: Launch, settings: Settings) -> list[str]:
    """vLLM's OpenAI server as a module: the `vllm` command of the CPU build fails on its own metadata."""
    arguments = {
        "--model": str(launch.path),
        "--served-model-name": launch.name,
        "--host": "127.0.0.1",
        "--port": str(launch.port),
        "--max-model-len": str(_context(launch.path, settings)),
        "--load-format": "safetensors",
        # Nothing is fetched for a request. An empty list would allow every host; this name never has an address (RFC 2606).
        "--allowed-media-domains": "media.invalid",
    }
    # An adapter may have a template of its own, which comes with its requests; of others the gateway lets none through.
    flags = ["--disable-uvicorn-access-log", "--trust-request-chat-template"]
    flags += ["--trust-remote-code"] if launch.own_code else []
    if launch.template is not None:
        arguments["--chat-template"] = str(launch.template)
    if launch.tool_parser is not None:
        flags.append("--enable-auto-tool-choice")
        arguments["--tool-call-parser"] = launch.tool_parser
    if launch.reasoning_parser is not None:
        arguments["--reasoning-parser"] = launch.reasoning_parser
    flags.append("--enable-lora")
    arguments |= {
        "--max-lora-rank": str(settings.max_lora_rank),
        "--max-loras": str(ADAPTER_SLOTS),
        "--max-cpu-loras": "32",
    }
    if _on_gpu(settings.vllm_python):
        arguments["--gpu-memory-utilization"] = str(_gpu_share(settings))
    else:
        flags.append("--enforce-eager")
    words = [word for pair in arguments.items() for word in pair]
    server = [str(settings.vllm_python), "-m", "vllm.entrypoints.openai.api_server"]
    return [*server, *words, *flags, *shlex.split(settings.vllm_args)]


def features(launch: Launch, settings: Settings) -> dict[str, Any]:
    """What its command line says, the operator's part included: of an argument that stands there twice the last one counts."""
    words = [part for word in command(launch, settings) for part in word.split("=", 1)]
    found = dict(pairwise(words))
    return {
        "engine": "vllm",
        "tools": found.get("--tool-call-parser"),
        "reasoning": found.get("--reasoning-parser"),
        "response_format": True,
    }


def environment(settings: Settings) -> dict[str, str]:
    """This process's environment and what vLLM reads from it; what the operator set for the CPU build wins."""
    fixed = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",  # nothing is imported from the working directory, which is the user's
    }
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    if _on_gpu(settings.vllm_python):
        return inherited | fixed
    # Compiling costs seconds at the start and 2 s more at the first request for log-probabilities, and gains nothing here.
    # vLLM's own binding pins every engine to the same cores, where a trainer or a second engine starves it; more threads
    # than cores are free cost a factor of five, so one is left to the others.
    cpu = {
        "VLLM_CPU_KVCACHE_SPACE": str(CPU_KV_CACHE_GIB),
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(max(1, (psutil.cpu_count(logical=False) or 2) - 1)),
    }
    fixed["PYTHONPATH"] = str(PLUGIN)
    if "VLLM_PLUGINS" in inherited:  # the operator's list of allowed plugins
        fixed["VLLM_PLUGINS"] = f"{inherited['VLLM_PLUGINS']},burnish"
    return cpu | inherited | fixed


def memory_needed(path: Path, settings: Settings) -> int:
    """On a GPU the share that vLLM takes at once; on a CPU weights, KV cache and what three Python processes take."""
    if _on_gpu(settings.vllm_python):
        return int(_gpu_memory()[1] * _gpu_share(settings))
    return int(weight_bytes(path) * 1.3) + CPU_KV_CACHE_GIB * GIB + CPU_PROCESS_BYTES


def memory_available(settings: Settings) -> int:
    """Free memory of the first GPU, or of the machine where vLLM runs on its CPU."""
    return _gpu_memory()[0] if _on_gpu(settings.vllm_python) else psutil.virtual_memory().available


def _gpu_share(settings: Settings) -> float:
    """Of a GPU's memory for each engine, so that `max_engines` fit beside one another."""
    return round(0.9 / settings.max_engines, 3)


def _gpu_memory() -> tuple[int, int]:
    """Free and total bytes of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()[0]
    free, total = (int(number) * 2**20 for number in answer.split(","))
    return free, total


@cache
def _on_gpu(python: Path) -> bool:
    """Whether the vLLM that is installed there is the GPU build, on a machine that has one."""
    is_cpu_build = any(python.parent.parent.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info"))
    return shutil.which("nvidia-smi") is not None and not is_cpu_build


def _context(path: Path, settings: Settings) -> int:
    """The longest context to serve, in tokens: the setting's, or the model's where that is shorter."""
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise EngineError("model_unreadable", f"{path}/config.json cannot be read: {error}") from error
    own = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    return min(settings.max_model_len, own or settings.max_model_len)
