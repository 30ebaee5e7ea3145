"""Which inference engine this machine uses."""

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
