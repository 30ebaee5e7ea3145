"""What the command line accepts, judged without running anything."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any


def all_commands(command: Any, name: str = "burnish") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from all_commands(inner, f"{name} {word}")


def problem_of(command: Any, line: str) -> str | None:
    """Why the command line would be a usage error; None where it would not, or only lacks arguments, as in a sentence."""
    _, *words = shlex.split(line, comments=True)
    while words and hasattr(command, "commands"):
        word = words.pop(0)
        if word in command.commands:
            command = command.commands[word]
        elif word in _options(command):
            words = [] if word in ("--help", "-h", "--version") else words[1:]
        else:
            return f"there is no command '{word}'"
    return _wrong_words(command, words)


def _options(command: Any) -> dict[str, Any]:
    found = {text: each for each in command.params for text in (*each.opts, *each.secondary_opts)}
    return found | dict.fromkeys(("--help", "-h"))


def _wrong_words(command: Any, words: list[str]) -> str | None:
    options, given = _options(command), 0
    most = sum(each.nargs for each in command.params if each.param_type_name == "argument")
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            given += 1
            continue
        name, _, value = word.partition("=")
        if name not in options:
            return f"there is no option '{name}'"
        option = options[name]
        if option is not None and not option.is_flag and not value:
            if not words:
                return f"the option '{name}' has no value"
            words.pop(0)
    return f"{given} arguments are given, {most} are taken" if given > most else None


def reference(command: Any) -> list[str]:
    """The rows of docs/cli.md: how each command is called, and what it does."""
    return [f"| `{_call(name, each)}` | {_sentence(each)} |" for name, each in all_commands(command)]


def _call(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    shown = [(each.metavar or each.name.upper(), each.required) for each in arguments]
    return " ".join([name, *(label if required else f"[{label}]" for label, required in shown)]).replace("|", "\\|")


def _sentence(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split()).replace("|", "\\|")
