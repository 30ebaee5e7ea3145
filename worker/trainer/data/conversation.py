"""Canonical turns and tools → what a chat template is handed: to the letter what vLLM 0.32 hands to it.

vLLM gets a conversation as an OpenAI chat request, which pydantic reads into typed dictionaries (that decides the keys and
their order, which templates show through `tojson`); then `vllm/renderers/chat_utils.py` (`_parse_chat_message_content`,
`_postprocess_messages`) prepares the messages, and `vllm/renderers/hf.py` the form of their content.
"""

from __future__ import annotations

import json
from typing import Any

from jinja2 import nodes
from transformers.utils.chat_template_utils import _compile_jinja_template

Message = dict[str, Any]
Conversation = list[Message]


def template_messages(turns: list[Message], *, as_parts: bool) -> Conversation:
    """The messages of canonical turns. `as_parts`: content is a list of text parts (see `iterates_over_content`)."""
    return [_message(turn, as_parts) for turn in turns]


def template_tools(tools: str | None) -> list[dict[str, Any]] | None:
    """The tools of a canonical row (JSON text of a list in OpenAI's shape), with the keys that vLLM knows; or None."""
    return [_tool(tool) for tool in json.loads(tools)] or None if tools else None


def _message(turn: Message, as_parts: bool) -> Message:
    role, content = turn["role"], turn["content"]
    message: Message = {"role": role, "content": content or ""}
    if as_parts and role != "tool":
        message["content"] = [] if content is None else [{"type": "text", "text": content}]
    if role == "assistant":
        if calls := turn.get("tool_calls"):
            message["tool_calls"] = [_call(call) for call in calls]
        if (reasoning := turn.get("reasoning_content")) is not None:
            message |= {"reasoning": reasoning, "reasoning_content": reasoning}
    elif role == "tool":
        message |= _present(turn, "tool_call_id")
    return message | _present(turn, "name")


def _call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = json.loads(call["arguments"]) if call["arguments"] else {}
    function = {"arguments": arguments if isinstance(arguments, dict) else {}, "name": call["name"]}
    return {**_present(call, "id"), "function": function, "type": "function"}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    function = tool["function"]
    known = {key: function.get(key) for key in ("name", "description", "parameters")}
    deferred = _present(function, "defer_loading") or _present(tool, "defer_loading")
    known |= _present(function, "strict") | deferred
    return {"type": "function", "function": known, **_present(tool, "defer_loading")}


def _present(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {key: values[key]} if values.get(key) is not None else {}


def iterates_over_content(source: str) -> bool:
    """Whether a template has a loop over a message's content, as vLLM finds it (`_detect_content_format` in hf.py).

    Such a template gets content as a list of parts, also where it would take a string.
    """
    root = _compile_jinja_template(source).environment.parse(source)
    try:
        return _has_content_loop(root)
    except _Unforeseen:
        return False


class _Unforeseen(Exception):
    """A loop or assignment into several variables, on which vLLM's detection gives up."""


def _has_content_loop(root: nodes.Template) -> bool:
    messages = _variables_of_loops(root, _assigned_from(root, "messages"))
    in_macros: set[int] = set()
    for macro in root.find_all(nodes.Macro):
        parameters = _content_parameters(root, macro, messages)
        for loop in macro.find_all(nodes.For):
            in_macros.add(id(loop))
            if isinstance(loop.iter, nodes.Name) and loop.iter.name in parameters:
                return bool(_name(loop.target))
    for loop in root.find_all(nodes.For):
        is_named_so = id(loop) not in in_macros and isinstance(loop.iter, nodes.Name) and loop.iter.name == "content"
        if is_named_so or any(_reads(loop.iter, name, "content") for name in messages):
            return bool(_name(loop.target))
    return False


def _assigned_from(root: nodes.Template, variable: str) -> set[str]:
    """The variable, and those that it, or a slice or filter of it, is assigned to."""
    names, waiting = {variable}, [variable]
    while waiting:
        name = waiting.pop()
        for assignment in root.find_all(nodes.Assign):
            if _reads(assignment.node, name) and (target := _name(assignment.target)) not in names:
                names.add(target)
                waiting.append(target)
    return names


def _variables_of_loops(root: nodes.Template, over: set[str]) -> set[str]:
    loops = root.find_all(nodes.For)
    return {_name(loop.target) for loop in loops if any(_reads(loop.iter, name) for name in over)}


def _content_parameters(root: nodes.Template, macro: nodes.Macro, messages: set[str]) -> set[str]:
    """The macro's parameters that some call gives a message's content to."""
    parameters = [argument.name for argument in macro.args]
    given: set[str] = set()
    for call in root.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name == macro.name:
            named = [(keyword.key, keyword.value) for keyword in call.kwargs if keyword.key in parameters]
            pairs = [*zip(parameters, call.args, strict=False), *named]
            given |= {name for name, value in pairs if any(_reads(value, each, "content") for each in messages)}
    return given


def _reads(node: nodes.Node | None, variable: str, key: str | None = None) -> bool:
    """Whether an expression is the variable (or its `key`), perhaps sliced, filtered or tested."""
    while isinstance(node, (nodes.Filter, nodes.Test)) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    if key is not None:
        if isinstance(node, nodes.Getitem):
            named = isinstance(node.arg, nodes.Const) and node.arg.value == key
        else:
            named = isinstance(node, nodes.Getattr) and node.attr == key
        return named and isinstance(node, (nodes.Getitem, nodes.Getattr)) and _reads_name(node.node, variable)
    return _reads_name(node, variable)


def _reads_name(node: nodes.Node | None, variable: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == variable


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _Unforeseen
    return target.name
