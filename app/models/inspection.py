"""What a directory of weights is, read from its files alone: no torch, no code of the model's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
from safetensors import SafetensorError, safe_open

from app.models.chat_templates import ends_of
from app.models.folders import bad_source, check_entries
from app.models.layers import modules_of
from app.models.own_code import needs_own_code

# What is read whole is bounded: weights are not, they are read by their headers.
MAX_TEXT_BYTES = 32 * 2**20
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Both to shield what computes with them.
LARGEST_SIZE, SHORTEST_CONTEXT = 2**31 - 1, 8
CONVERT = (
    'python -c "import sys; from transformers import AutoModelForCausalLM as M; '
    'M.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[1])" DIRECTORY'
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


def inspect_model(folder: Path, *, architecture_only: bool = False) -> tuple[dict[str, Any], str | None]:
    """The facts of the model in `folder` and its chat template (None where it has none); with `architecture_only` no weights
    are looked for.

    Facts: `architecture`, `model_type`, `parameters`, `hidden_size`, `layers` (its blocks, or None), `max_length` (tokens, or
    None), `modules` (names of the modules of its blocks that have a weight matrix), `bytes` and, only where it is so,
    `architecture_only` (then `parameters` is None, and there are no `modules`), `own_code` (it can be loaded with its own code
    only) and `mixture_of_depths` (it has routers: `worker.trainer.depths`);
    `templates`, where the tokenizer's tokens can be read: which of our chat templates end with one of them (`ends_of`).
    Raises `InvalidValue` on `source` that says what is missing.
    """
    try:
        return _inspect(folder, architecture_only)
    except (OSError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise bad_source(folder, f"cannot be read: {error}", "Give a directory that the service may read.") from error


def _inspect(folder: Path, architecture_only: bool) -> tuple[dict[str, Any], str | None]:
    if not folder.is_dir():
        raise bad_source(
            folder, "is not a directory on this machine", "Give the path of a directory that holds config.json."
        )
    check_entries(folder)
    if (folder / "adapter_config.json").exists():  # transformers would load the model that it names instead
        raise bad_source(
            folder, "has an adapter_config.json: it is an adapter", "Merge it into its base model, or remove that file."
        )
    config = _json(folder / "config.json")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise bad_source(folder, "has no tokenizer", f"One of {', '.join(TOKENIZER_FILES)} is needed.")
    shapes = {} if architecture_only else _weight_shapes(folder)
    text = config.get("text_config") or config
    hidden_size = text.get("hidden_size") or text.get("n_embd") or text.get("d_model")
    architectures = config.get("architectures")
    context = text.get("max_position_embeddings") or text.get("n_positions")
    layers = text.get("num_hidden_layers") or text.get("n_layer")
    if not _is_size(hidden_size) or not isinstance(architectures, list) or not architectures:
        raise bad_source(
            folder, "has a config.json without 'architectures' or 'hidden_size'", "Is it a causal language model?"
        )
    facts: dict[str, Any] = {
        "architecture": str(architectures[0]),
        "model_type": str(config.get("model_type", "")),
        "parameters": sum(math.prod(shape) for shape in shapes.values()) or None,
        "hidden_size": hidden_size,
        "layers": layers if _is_size(layers) else None,
        "max_length": context if _is_size(context) and context >= SHORTEST_CONTEXT else None,
        "modules": modules_of(shapes),
        "bytes": 0 if architecture_only else sum(path.stat().st_size for path in folder.glob("*.safetensors")),
    }
    if architecture_only:
        facts["architecture_only"] = True
    if needs_own_code(config, _tokenizer_config(folder)):
        facts["own_code"] = True
    if config.get("mixture_of_depths"):
        facts["mixture_of_depths"] = True
    special = _special_tokens(folder, text.get("vocab_size"))
    if special is not None:
        facts["templates"] = ends_of(special, _content(_tokenizer_config(folder).get("eos_token")))
    return facts, _chat_template(folder)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST_SIZE


def _weight_shapes(folder: Path) -> dict[str, list[int]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [path for pattern in PICKLES for path in sorted(folder.glob(pattern))]
        if pickles:
            found = f"has pickled weights ({pickles[0].name}), which can run any code, and no safetensors"
            raise bad_source(folder, found, f"If you trust them, convert them where transformers is: {CONVERT}")
        hint = "Give the directory that holds the model's own files, or set architecture_only to begin with random weights."
        raise bad_source(folder, "has no safetensors weights", hint)
    _check_index(folder)
    shapes: dict[str, list[int]] = {}
    for path in files:
        try:
            with safe_open(path, framework="numpy") as weights:
                shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise bad_source(
                folder, f"has an unreadable {path.name}: {error}", "Copy the file again; it may be cut off."
            ) from error
    return shapes


def _check_index(folder: Path) -> None:
    """Raises `InvalidValue` where the index of weights names a file that is not one of the folder's own."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    named = _json(index).get("weight_map")
    if not isinstance(named, dict):
        raise bad_source(folder, f"has a {index.name} without a 'weight_map'", "Copy the file again.")
    for name in set(map(str, named.values())):
        if not name.endswith(".safetensors") or Path(name).name != name or not (folder / name).is_file():
            raise bad_source(folder, f"has no file '{name}', which {index.name} names", "Copy the model again.")


def _chat_template(folder: Path) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _text(folder / "chat_template.jinja")
    template = _tokenizer_config(folder).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None


class _Token(msgspec.Struct):
    """A token that a tokenizer never splits."""

    id: int
    content: str
    special: bool = False


class _Tokenizer(msgspec.Struct):
    """What is read of a tokenizer.json, whose vocabulary may be many megabytes."""

    added_tokens: list[_Token] = []


def _special_tokens(folder: Path, vocabulary: object) -> dict[str, int] | None:
    """The ids of the tokenizer's special tokens, those beyond the model's `vocabulary` left out; None where they cannot be
    read without the tokenizer itself."""
    path = folder / "tokenizer.json"
    if not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
        return None
    try:
        tokens = msgspec.json.decode(path.read_bytes(), type=_Tokenizer).added_tokens
    except (msgspec.MsgspecError, RecursionError):
        return None
    config = _tokenizer_config(folder)
    extra = config.get("additional_special_tokens") or []
    special = {_content(each) for each in (config.get("eos_token"), *(extra if isinstance(extra, list) else []))}
    return {
        token.content: token.id
        for token in tokens
        if (token.special or token.content in special) and not (_is_size(vocabulary) and token.id >= vocabulary)
    }


def added_tokens(folder: Path) -> frozenset[str]:
    """The tokens that the tokenizer of the model in `folder` never splits, special or not; empty where they can't be read."""
    path = folder / "tokenizer.json"
    try:
        tokens = msgspec.json.decode(path.read_bytes(), type=_Tokenizer).added_tokens
    except (OSError, msgspec.MsgspecError, RecursionError):
        return frozenset()
    return frozenset(token.content for token in tokens)


def _content(token: object) -> str | None:
    """The text of a token as configurations have it: by itself, or in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return _json(path) if path.is_file() else {}


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise bad_source(path.parent, f"has a {path.name} of over {MAX_TEXT_BYTES} bytes", "Is it the model's own?")
    return path.read_text(encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except FileNotFoundError:
        raise bad_source(
            path.parent, f"has no {path.name}", "Give the directory that holds the model's own files."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise bad_source(path.parent, f"has an unreadable {path.name}: {error}", "Copy the file again.") from error
    if not isinstance(value, dict):
        raise bad_source(path.parent, f"has a {path.name} that is not a JSON object", "Copy the file again.")
    return value
