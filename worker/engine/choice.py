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


def engine_for(wanted: WantedEngine, usual: InferenceEngine) -> InferenceEngine:
    """The engine of these weights: the embedded one for reward models and Mixture-of-Depths, else the machine's usual one."""
    return embedded if wanted.kind == "reward" or wanted.mixture_of_depths else usual
