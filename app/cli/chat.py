"""`burnish chat`: one message, or a conversation."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from app.cli import output
from app.cli.client import Service, connect, refusal
from app.cli.failure import Failure

Messages = list[dict[str, str]]


def chat(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The name or id of a base model or fine-tune.")],
    message: Annotated[
        str | None,
        typer.Argument(
            metavar="MESSAGE", help="Your message. Without it: standard input, or in a terminal a conversation."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Randomness of the answer. 0 always takes the most likely token.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None,
) -> None:
    """Chat with a model. The answer is printed as it comes."""
    options = {"temperature": temperature, "max_tokens": max_tokens}
    request = {"model": model, "stream": True} | {key: value for key, value in options.items() if value is not None}
    messages: Messages = [{"role": "system", "content": system}] if system else []
    with connect(context) as service:
        if message is None and sys.stdin.isatty():
            _converse(service, request, messages)
            return
        question = sys.stdin.read().rstrip("\n") if message is None else message
        _answer(service, request, [*messages, {"role": "user", "content": question}])


def _converse(service: Service, request: dict[str, Any], messages: Messages) -> None:
    """Asks for messages until Ctrl-D. A refused message is taken back, so that the conversation can go on."""
    import readline  # lines can be edited from here on

    assert readline
    output.say(f"Chat with {request['model']}. Ctrl-C stops an answer, Ctrl-D ends the conversation.", style="dim")
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question.strip():
            continue
        asked: Messages = [*messages, {"role": "user", "content": question}]
        try:
            messages = [*asked, {"role": "assistant", "content": _answer(service, request, asked)}]
        except Failure as failure:
            output.show_failure(failure)
        except KeyboardInterrupt:
            print()


def _answer(service: Service, request: dict[str, Any], messages: Messages) -> str:
    """Prints the answer as it comes; returns it."""
    console, parts, finish = output.stderr(), [], None
    # The first request may have to wait until the model's engine is up.
    waiting = console.status(f"Waiting for {output.clean(request['model'])} …") if console.is_terminal else None
    if waiting:
        waiting.start()
    try:
        with service.events("POST", "/v1/chat/completions", request | {"messages": messages}) as stream:
            for sent in stream:
                if sent.data == "[DONE]":
                    break
                text, finish = _delta(json.loads(sent.data))
                if text:
                    if waiting:
                        waiting.stop()
                    parts.append(text)
                    print(output.clean(text), end="", flush=True)
            else:
                raise Failure(
                    "The answer broke off.", hint="Ask again; the engine's log is in BURNISH_HOME/logs.", temporary=True
                )
    finally:
        if waiting:
            waiting.stop()
    print()
    if finish == "length":
        output.say("(cut off: the answer reached its limit of tokens)", style="dim")
    return "".join(parts)


def _delta(chunk: dict[str, Any]) -> tuple[str, str | None]:
    """The text that a chunk adds, and why the answer ended, once it has. Raises `Failure` for an error in the stream."""
    if failure := refusal(chunk):
        raise failure
    choice = (chunk.get("choices") or [{}])[0]
    return choice.get("delta", {}).get("content") or "", choice.get("finish_reason")
