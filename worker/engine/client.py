"""Speaks to a running engine. vLLM's HTTP surface is the common one: the embedded server answers it too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from app.kit import tracing
from worker.engine.protocol import EngineError

# Loading an adapter takes milliseconds, but a busy engine answers late; better late than a wrong "failed".
_TIMEOUT = httpx.Timeout(120.0, connect=5.0)


def is_healthy(url: str) -> bool:
    """Whether the engine at `url` answers and says that it can serve."""
    try:
        return _http().get(f"{url}/health", timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False


def load_adapter(url: str, name: str, path: Path) -> None:
    """Make the PEFT adapter in the folder `path` answer as the model `name`. One that is loaded already stays.

    Raises `EngineError` `adapter_refused` when the engine does not take it, `engine_unreachable` when it does not answer.
    """
    response = _post(url, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
    # Names are used once, so an adapter that is there under this name is this adapter.
    if response.is_error and "already" not in response.text:
        raise EngineError(
            "adapter_refused",
            f"The engine does not take the adapter {name}: {_reason(response)}",
            "Merge it (deploy.mode 'merged') to serve it as weights of its own.",
        )


def unload_adapter(url: str, name: str) -> None:
    """Take the adapter out of the engine; one that is not there is no error. Raises `EngineError` as `load_adapter` does."""
    response = _post(url, "/v1/unload_lora_adapter", {"lora_name": name})
    if response.is_error and response.status_code != 404:
        raise EngineError("adapter_refused", f"The engine does not unload {name}: {_reason(response)}")


def score(url: str, name: str, token_ids: Sequence[int]) -> float:
    """The natural log-probability that model `name` gives to the last of `token_ids` after the ones before it.

    Raises `EngineError` `score_failed`, or `engine_unreachable`.
    """
    body = {"model": name, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    response = _post(url, "/v1/completions", body)
    if response.is_error:
        raise EngineError("score_failed", f"The engine does not score with {name}: {_reason(response)}")
    return float(response.json()["choices"][0]["prompt_logprobs"][-1][str(token_ids[-1])]["logprob"])


def reward(url: str, name: str, token_ids: Sequence[int]) -> float:
    """The score that the reward model `name` gives to a text. Raises `EngineError` as `score` does."""
    response = _post(url, "/v1/score", {"model": name, "token_ids": [list(token_ids)]})
    if response.is_error:
        raise EngineError("score_failed", f"The engine does not score with {name}: {_reason(response)}")
    return float(response.json()["data"][0]["score"])


@cache
def _http() -> httpx.Client:
    """One client for all calls: a new one reads the certificates again, which takes longer than most calls. It keeps no
    connection, because the engine behind it may be gone."""
    # No proxy of the environment may stand between this machine and itself.
    return httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def _post(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    try:
        with tracing.calling(f"POST {path}") as headers:
            return _http().post(url + path, json=body, headers=headers, timeout=_TIMEOUT)
    except httpx.HTTPError as error:
        raise EngineError("engine_unreachable", f"The engine at {url} does not answer {path}: {error!r}") from error


def _reason(response: httpx.Response) -> str:
    """The message of an OpenAI-shaped error, or the text as it is."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500] or f"status {response.status_code}"
