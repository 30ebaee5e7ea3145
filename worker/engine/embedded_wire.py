"""What the embedded engine takes and refuses of OpenAI's requests, and the shapes of what it answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from fastapi.responses import JSONResponse

# Fields that are understood. Any other may be sent only with a value that asks for nothing.
COMMON = {
    "model",
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "stop_token_ids",
    "seed",
    "stream",
    "stream_options",
}
OF_CHAT = COMMON | {"messages", "max_completion_tokens", "chat_template", "chat_template_kwargs"}
OF_COMPLETION = COMMON | {"prompt"}
# There is no cache that requests share, so there is nothing to salt.
IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "cache_salt",
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
}
RANGES: dict[str, tuple[Any, float, float]] = {
    "max_tokens": (int, 1, 1e9),
    "max_completion_tokens": (int, 1, 1e9),
    "temperature": ((int, float), 0, 2),
    "top_p": ((int, float), 1e-6, 1),
    "seed": (int, -(2.0**63), 2.0**64 - 1),
}


class Refused(Exception):
    """A request that gets an OpenAI-shaped error."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    def response(self) -> JSONResponse:
        """The error as OpenAI has it."""
        fields = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return JSONResponse({"error": fields}, self.status)


def check_chat(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a chat request, nulls left out. Raises `Refused` for what is malformed or is not served here."""
    fields = _check(body, OF_CHAT)
    fields["messages"] = [_message(each) for each in _list(fields.get("messages"), "messages")]
    if not isinstance(fields.setdefault("chat_template_kwargs", {}), dict):
        raise Refused("chat_template_kwargs must be an object.", "chat_template_kwargs", "invalid_value")
    if not isinstance(fields.get("chat_template", ""), str):
        raise Refused("chat_template must be text.", "chat_template", "invalid_value")
    return fields


def check_completion(body: dict[str, Any]) -> dict[str, Any]:
    """The fields of a completion request, nulls left out; its prompt is a text or the ids of one. Raises `Refused`."""
    fields = _check(body, OF_COMPLETION)
    prompt = fields.get("prompt")
    is_ids = isinstance(prompt, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in prompt)
    if not prompt or not (is_ids or isinstance(prompt, str)):
        raise Refused("prompt must be one text, or its token ids, and not empty.", "prompt", "invalid_value")
    return fields


def _check(body: dict[str, Any], known: set[str]) -> dict[str, Any]:
    fields = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name, value in fields.items():
        if name not in known and not any(value == neutral for neutral in NEUTRAL.get(name, ())):
            raise Refused(f"The embedded engine does not support {name}={value!r}.", name, "unsupported_parameter")
        if name in RANGES:
            kind, low, high = RANGES[name]
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                raise Refused(
                    f"{name} must be a number from {low:g} to {high:g}, not {value!r}.", name, "invalid_value"
                )
    stop = fields.get("stop", [])
    fields["stop"] = [stop] if isinstance(stop, str) else stop
    if not isinstance(fields["stop"], list) or not all(isinstance(each, str) and each for each in fields["stop"]):
        raise Refused("stop must be a string or a list of strings that are not empty.", "stop", "invalid_value")
    ids = fields.setdefault("stop_token_ids", [])
    if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
        raise Refused("stop_token_ids must be a list of token ids.", "stop_token_ids", "invalid_value")
    if not isinstance(fields.get("stream", False), bool) or not isinstance(fields.get("stream_options", {}), dict):
        raise Refused("stream must be true or false, and stream_options an object.", "stream", "invalid_value")
    return fields


class Shape(NamedTuple):
    """How an answer is written: the prefix of its id, its kind in one piece and as events, and what a choice has of the text:
    all of it, what is new, how the first event opens (None: it does not) and how the last one ends."""

    prefix: str
    kind: str
    event_kind: str
    whole: Callable[[str], dict[str, Any]]
    piece: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None
    ending: dict[str, Any]


CHAT = Shape(
    prefix="chatcmpl",
    kind="chat.completion",
    event_kind="chat.completion.chunk",
    whole=lambda text: {"message": {"role": "assistant", "content": text}},
    piece=lambda text: {"delta": {"content": text}},
    opening={"delta": {"role": "assistant", "content": ""}},
    ending={"delta": {}},
)
COMPLETION = Shape(
    prefix="cmpl",
    kind="text_completion",
    event_kind="text_completion",
    whole=lambda text: {"text": text},
    piece=lambda text: {"text": text},
    opening=None,
    ending={"text": ""},
)


def chunk(shape: Shape, id: str, model: str, part: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """One event of a stream."""
    choice = {"index": 0, **part, "logprobs": None, "finish_reason": finish}
    return _envelope(id, shape.event_kind, model) | {"choices": [choice]}


def completion(shape: Shape, id: str, model: str, text: str, finish: str, usage: dict[str, int]) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, **shape.whole(text), "logprobs": None, "finish_reason": finish}
    return _envelope(id, shape.kind, model) | {"choices": [choice], "usage": usage}


def scored(id: str, model: str, ids: list[int], log_probabilities: list[float]) -> dict[str, Any]:
    """The answer to a completion request for prompt log-probabilities, as vLLM has it."""
    entries = [{str(token): {"logprob": value}} for token, value in zip(ids[1:], log_probabilities, strict=True)]
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "prompt_logprobs": [None, *entries]}
    return _envelope(id, "text_completion", model) | {"choices": [choice], "usage": count(len(ids), 0)}


def count(prompt: int, answer: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _envelope(id: str, kind: str, model: str) -> dict[str, Any]:
    return {"id": id, "object": kind, "created": int(time.time()), "model": model}


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise Refused(f"{name} must be a list that is not empty.", name, "invalid_value")
    return value


def _message(value: Any) -> dict[str, Any]:
    """A message with its content as one string: parts of text are joined, other parts refused."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise Refused("Each message must be an object with a role.", "messages", "invalid_value")
    if value.get("tool_calls"):
        raise Refused("The embedded engine knows no tools.", "messages", "unsupported_parameter")
    content = value.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise Refused("The embedded engine reads text only.", "messages", "unsupported_parameter")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refused("Each message must have a content of text.", "messages", "invalid_value")
    return value | {"content": content}
