"""How a dataset's rows, what a model sees of them, and what training would make of them are printed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from app.cli import output

BAR_CELLS = 40


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Canonical rows: in a terminal turn by turn, anywhere else a line of JSON each."""
    console = output.stdout()
    for row in rows:
        if not console.is_terminal:
            print(json.dumps(row, ensure_ascii=False))
            continue
        console.print(f"row {row['row']}", style="bold")
        for label, text in _parts(row):
            console.print(f"  {label}: ", style="cyan", end="")
            console.print(output.clean(text))


def print_preview(preview: dict[str, Any]) -> None:
    """A row as the model sees it: in a terminal as text, what carries loss in green; anywhere else a line a token: part,
    token id, 1 where it carries loss, the token as JSON."""
    console = output.stdout()
    for sequence in preview["sequences"]:
        tokens = list(zip(sequence["tokens"], sequence["loss_mask"], sequence["token_ids"], strict=True))
        if not console.is_terminal:
            for token, loss, id in tokens:
                print(sequence["part"], id, loss, json.dumps(token, ensure_ascii=False), sep="\t")
            continue
        counted = f"{len(tokens)} tokens, {sum(sequence['loss_mask'])} with loss"
        cut = f", {sequence['cut_tokens']} cut off" if sequence["cut_tokens"] else ""
        console.print(f"{sequence['part']}: {counted}{cut}", style="bold")
        for loss, run in groupby(tokens, key=lambda token: token[1]):
            console.print(output.clean("".join(token for token, _, _ in run)), style="green" if loss else "dim", end="")
        console.print()


def print_check(check: dict[str, Any]) -> None:
    """Numbers, a line each, and in a terminal the rows by their length."""
    console = output.stdout()
    if not console.is_terminal:
        output.print_object(check)
        return
    tokens = dict(check["tokens"])
    histogram = tokens.pop("histogram")
    output.print_object(check | {"tokens": tokens})
    most = max((bar["rows"] for bar in histogram), default=0) or 1
    for bar in histogram:
        cells = "█" * round(BAR_CELLS * bar["rows"] / most)
        console.print(f"{bar['from']:>8} to {bar['to']:<8} {cells} {bar['rows']}")


def _parts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What a canonical row holds, each with its label."""
    for part in ("messages", "chosen", "rejected"):
        for message in row.get(part) or []:
            yield from _turn(message, "" if part == "messages" else f"{part} ")
    for name in ("text", "reference", "label", "tools"):
        if (value := row.get(name)) is not None:
            yield name, value if isinstance(value, str) else json.dumps(value)


def _turn(message: dict[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    label = prefix + message["role"] + (" (no loss)" if message.get("weight") == 0 else "")
    if message.get("reasoning_content"):
        yield f"{label} thinks", message["reasoning_content"]
    if message.get("content") is not None:
        yield label, message["content"]
    for call in message.get("tool_calls") or []:
        yield f"{label} calls", f"{call['name']}({call['arguments']})"
