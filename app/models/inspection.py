"""What a directory of weights is, read from its files alone: no torch, no code of the model's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from safetensors import SafetensorError, safe_open

from app.kit.errors import InvalidValue

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def inspect_model(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The facts of the model in `folder` and its chat template (None where it has none).

    Facts: `architecture`, `model_type`, `parameters`, `hidden_size`, `max_length` (tokens, or None), `modules` (names of
    modules with a weight matrix) and `bytes`. Raises `InvalidValue` on `source` that says what is missing.
    """
    try:
        return _inspect(folder)
    except (OSError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise _bad(folder, f"cannot be read: {error}", "Give a directory that the service may read.") from error


def _inspect(folder: Path) -> tuple[dict[str, Any], str | None]:
    if not folder.is_dir():
        raise _bad(folder, "is not a directory on this machine", "Give the path of a directory that holds config.json.")
    config = _json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise _bad(folder, "has no tokenizer", f"One of {', '.join(TOKENIZER_FILES)} is needed.")
    shapes = _weight_shapes(folder)
    text = config.get("text_config") or config
    hidden_size = text.get("hidden_size") or text.get("n_embd") or text.get("d_model")
    architectures = config.get("architectures")
    context = text.get("max_position_embeddings") or text.get("n_positions")
    if not isinstance(hidden_size, int) or not isinstance(architectures, list) or not architectures:
        raise _bad(
            folder, "has a config.json without 'architectures' or 'hidden_size'", "Is it a causal language model?"
        )
    facts = {
        "architecture": str(architectures[0]),
        "model_type": str(config.get("model_type", "")),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "hidden_size": hidden_size,
        "max_length": context if isinstance(context, int) else None,
        "modules": sorted({name.split(".")[-2] for name, shape in shapes.items() if _is_matrix(name, shape)}),
        "bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    }
    return facts, _chat_template(folder)


def check_chat_template(template: str) -> None:
    """Raises `InvalidValue` where the text is not a Jinja template that a tokenizer could run."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    # transformers adds this pair of tags; to parse, any block will do in their place.
    plain = template
    for tag in ("generation", "endgeneration"):
        for opening in ("{%", "{%-"):
            for closing in ("%}", "-%}"):
                plain = plain.replace(f"{opening} {tag} {closing}", "")
    try:
        environment.parse(plain)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidValue(
            f"'chat_template' is not a Jinja template: {error.message} (line {error.lineno}).",
            param="chat_template",
            hint="Send the text of the template itself, as in a model's chat_template.jinja.",
        ) from error


def _weight_shapes(folder: Path) -> dict[str, list[int]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        found = (
            f"has pickled weights ({pickles[0].name}) and no safetensors" if pickles else "has no safetensors weights"
        )
        raise _bad(
            folder, found, "Only safetensors are read: load the model with transformers and save_pretrained() it."
        )
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise _bad(
                folder, f"has an unreadable {path.name}: {error}", "Copy the file again; it may be cut off."
            ) from error
    return shapes


def _is_matrix(name: str, shape: list[int]) -> bool:
    return len(shape) == 2 and name.endswith(".weight") and name.count(".") >= 2


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not (folder / "tokenizer_config.json").is_file():
        return None
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _bad(path.parent, f"has no {path.name}", "Give the directory that holds the model's own files.") from None
    except (OSError, ValueError) as error:
        raise _bad(path.parent, f"has an unreadable {path.name}: {error}", "Copy the file again.") from error
    if not isinstance(value, dict):
        raise _bad(path.parent, f"has a {path.name} that is not a JSON object", "Copy the file again.")
    return value


def _bad(folder: Path, what: str, hint: str) -> InvalidValue:
    return InvalidValue(f"The source '{folder}' {what}.", param="source", hint=hint)
