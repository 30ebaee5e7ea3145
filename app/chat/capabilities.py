"""What a request may ask of a model beyond plain chat: tools, a format of the answer, reasoning."""

from __future__ import annotations

from typing import Any

from app.kit.errors import InvalidValue
from app.models.parsers import WITHOUT_REASONING, reasoning_parser, thinks_by_default, tool_parser
from app.models.tables import Model
from app.settings import get_settings

FAMILIES = "docs/models.md lists the families whose models call tools."


def require_supported(model: Model, body: dict[str, Any], features: dict[str, Any] | None) -> None:
    """Raises `InvalidValue` where the request asks for what `model` isn't known to do.

    `features` are those of its engine (`Engine.features`); None before there is one: then only what no engine could do is
    refused.
    """
    for name, now in (("functions", "tools"), ("function_call", "tool_choice")):
        if body.get(name):
            raise _unsupported(name, f"'{name}' is the old name of '{now}'", f"Send '{now}'.")
    if body.get("tools") and not _reads_tools(model, features):
        if features and features["engine"] != "vllm":
            raise _unsupported("tools", _engine(model, features, "calls no tools"), "Serve the model with vLLM.")
        why = f"the chat template of '{model.name}' is of no family whose tool calls can be read"
        raise _unsupported("tools", why, f"Leave 'tools' out, or use another model. {FAMILIES}")
    wanted = body.get("response_format")
    plain = wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text")
    if not plain and features is not None and not features.get("response_format"):
        raise _unsupported(
            "response_format",
            _engine(model, features, "doesn't keep answers to a format"),
            "Leave 'response_format' out and ask for the format in the messages, or serve the model with vLLM.",
        )


def reasoning_arguments(model: Model, body: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Template arguments that tell vLLM's reasoning parser when answers have no reasoning: it doesn't look, and takes all
    text for reasoning. `arguments` are those that the request has already."""
    served = model.base_model if model.kind == "adapter" and model.base_model else model
    if reasoning_parser(served.chat_template) is None:
        return {}
    own = model.chat_template or ""
    # A fine-tune learns reasoning only where its template writes it in training.
    if reasoning_parser(own) is None or (model.kind != "base" and "reasoning" not in own):
        return WITHOUT_REASONING
    if not thinks_by_default(own) and "enable_thinking" not in arguments and not body.get("reasoning_effort"):
        return {"enable_thinking": False}
    return {}


def _reads_tools(model: Model, features: dict[str, Any] | None) -> bool:
    own = tool_parser(model.chat_template)
    if features is None:  # the operator may have named a parser
        return own is not None or "--tool-call-parser" in get_settings().vllm_args
    base = model.base_model if model.kind == "adapter" else None
    same_template = base is None or base.chat_template == model.chat_template
    return features.get("tools") is not None and (same_template or own == features["tools"])


def _engine(model: Model, features: dict[str, Any], what: str) -> str:
    return f"'{model.name}' is served by the engine '{features.get('engine', 'unknown')}', which {what}"


def _unsupported(param: str, why: str, hint: str) -> InvalidValue:
    return InvalidValue(f"The field '{param}' is not supported: {why}.", param=param, code="unsupported", hint=hint)
