"""Which inference engine serves what."""

from __future__ import annotations

from app.settings import Settings
from worker.engine import embedded, vllm
from worker.engine.protocol import InferenceEngine
from worker.engine.rows import WantedEngine

ENGINES: dict[str, InferenceEngine] = {"vllm": vllm, "embedded": embedded}


def choose_engine(settings: Settings) -> InferenceEngine:
    """The engine that `BURNISH_ENGINE` names; `auto` takes vLLM where it is installed, else the embedded one."""
    name = settings.engine
    if name == "auto":
        name = "vllm" if vllm.is_installed(settings) else "embedded"
    return ENGINES[name]


def engine_for(wanted: WantedEngine, usual: InferenceEngine, settings: Settings) -> InferenceEngine:
    """The engine of these weights: the embedded one for what vLLM cannot serve, else the machine's usual one."""
    return embedded if usual is vllm and _is_beyond_vllm(wanted, settings) else usual


def _is_beyond_vllm(wanted: WantedEngine, settings: Settings) -> bool:
    """Reward models, Mixture-of-Depths, models that only code of their own can load and vLLM has none for, and those on which
    it takes no adapters."""
    unknown = wanted.own_code and not vllm.knows(wanted.architecture, settings.vllm_python)
    without_adapters = wanted.architecture in vllm.WITHOUT_ADAPTERS
    return wanted.kind == "reward" or wanted.mixture_of_depths or unknown or without_adapters
