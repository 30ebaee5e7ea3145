"""Which inference engine serves what."""

from __future__ import annotations

from app.settings import Settings
from worker.engine import embedded, vllm
from worker.engine.protocol import InferenceEngine

ENGINES: dict[str, InferenceEngine] = {"vllm": vllm, "embedded": embedded}


def choose_engine(settings: Settings) -> InferenceEngine:
    """The engine that `BURNISH_ENGINE` names; `auto` takes vLLM where it is installed, else the embedded one."""
    name = settings.engine
    if name == "auto":
        name = "vllm" if vllm.is_installed(settings) else "embedded"
    return ENGINES[name]


def engine_for(kind: str, usual: InferenceEngine) -> InferenceEngine:
    """The engine of a model of this kind: the embedded one scores, the machine's usual one writes answers."""
    return embedded if kind == "reward" else usual
