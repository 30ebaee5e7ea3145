"""LLaMA-Factory's `dataset_info.json`: what an entry means, and the fields of an upload that say the same here.

The schema is that of LLaMA-Factory 0.9 (`data/README.md` and `data/parser.py` there). Nothing here opens a data file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from app.cli.failure import Failure

FILE = "dataset_info.json"

# Where the rows are. LLaMA-Factory looks at them in this order; the hubs come first, a file last.
HUBS = {"ms_hub_url": "modelscope", "hf_hub_url": "hf"}
NO_COUNTERPART = ("om_hub_url", "script_url", "cloud_file_name")
OTHER_KEYS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
KEYS = (*HUBS, *NO_COUNTERPART, "file_name", *OTHER_KEYS)

MEDIA = ("images", "videos", "audios")
COMMON_COLUMNS = ("system", "tools", "chosen", "rejected", "kto_tag")
ALPACA_COLUMNS = ("prompt", "query", "response", "history", *COMMON_COLUMNS)
TURNS_COLUMNS = ("messages", *COMMON_COLUMNS)
# What rows can do without.
OPTIONAL_COLUMNS = ("query", "history", "system", "tools")
COLUMNS = (*ALPACA_COLUMNS, "messages", *MEDIA)

# What OpenAI's messages are called, in the words of ShareGPT's tags.
OPENAI_TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "tool", "system_tag": "system",
}  # fmt: skip
TAGS = (*OPENAI_TAGS, "function_tag")

COMPRESSED = (".gz", ".zst")


class Skipped(Exception):
    """An entry that has no counterpart here; the text says why."""


class Refused(Exception):
    """An entry that is wrong; the text says what is."""


@dataclass(frozen=True)
class Entry:
    """One entry, checked. `hubs` holds the repository by the hub's name; where there is none, `file_name` is given."""

    name: str
    hubs: dict[str, str]
    file_name: str | None
    formatting: str
    ranking: bool
    columns: dict[str, str] | None
    tags: dict[str, str]
    subset: str | None
    split: str
    folder: str | None
    num_samples: int | None


def read(folder: Path) -> dict[str, Any]:
    """The entries of the folder's `dataset_info.json` as they stand there, by name. Raises `Failure`."""
    file = folder / FILE
    try:
        entries = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise Failure(
            f"{folder} has no {FILE}.", hint="Name the folder that LLaMA-Factory calls dataset_dir."
        ) from None
    except (OSError, ValueError) as error:
        raise Failure(f"{file} cannot be read: {error}") from error
    if not isinstance(entries, dict):
        raise Failure(f"{file} holds JSON, but not an object.")
    return entries


def parse(name: str, value: Any) -> Entry:
    """The entry of this name. Raises `Skipped` where it has no counterpart here, `Refused` where it is wrong."""
    if not isinstance(value, dict):
        raise Refused("the entry is not an object")
    # What is null is what is not given.
    given = {key: item for key, item in value.items() if item is not None}
    _no_unknown(given, KEYS, "")
    hubs = {hub: _string(given, key) for key, hub in HUBS.items() if key in given}
    if not hubs:
        if foreign := next((key for key in NO_COUNTERPART if key in given), None):
            raise Skipped(f"{foreign} has no counterpart here")
        if "file_name" not in given:
            raise Refused("it names no source: file_name, hf_hub_url or ms_hub_url")
    columns = _strings(given, "columns", COLUMNS)
    if media := [column for column in MEDIA if column in columns]:
        raise Skipped(f"{' and '.join(media)} are not supported")
    formatting = given.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise Refused(f"formatting is {json.dumps(formatting)}; it must be alpaca, sharegpt or openai")
    ranking, samples = given.get("ranking", False), given.get("num_samples")
    if not isinstance(ranking, bool):
        raise Refused("ranking must be true or false")
    if samples is not None and (type(samples) is not int or samples < 1):
        raise Refused("num_samples must be a whole number above 0")
    return Entry(
        name=name,
        hubs=hubs,
        file_name=_string(given, "file_name") if "file_name" in given else None,
        formatting=formatting,
        ranking=ranking,
        columns=columns if "columns" in given else None,
        tags=_strings(given, "tags", TAGS),
        subset=_string(given, "subset") if "subset" in given else None,
        split=_string(given, "split") if "split" in given else "train",
        folder=_string(given, "folder") if "folder" in given else None,
        num_samples=samples,
    )


def upload_fields(entry: Entry, filename: str) -> dict[str, str]:
    """The fields `format`, `kind`, `columns` and `tags` of the upload of one of the entry's files."""
    if is_plain_text(filename):
        return {"format": "text", "kind": "text"}
    format, kind, columns, tags = _meaning(entry)
    fields = {"format": format, "kind": kind}
    if columns:
        fields["columns"] = json.dumps(columns, ensure_ascii=False)
    if tags:
        fields["tags"] = json.dumps(tags, ensure_ascii=False)
    return fields


def suffix(filename: str) -> str:
    """The ending that says what a file holds, compression aside: `.jsonl` for `rows.jsonl.gz`."""
    path = PurePosixPath(filename.lower())
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix


def is_plain_text(filename: str) -> bool:
    """Whether a file of this name is text, a line a row."""
    return suffix(filename) == ".txt"


def local_files(folder: Path, file_name: str) -> list[Path]:
    """The files that `file_name` means: itself, or, where it is a directory, those in it, in the order of their names.

    Raises `Refused` for what leads out of `folder`, `Skipped` for what is not in it.
    """
    root = folder.resolve()
    try:
        path = (root / file_name).resolve()
        if path.is_dir() and path.is_relative_to(root):
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        else:
            files = [path]
        if not all(file.resolve().is_relative_to(root) for file in files):
            raise Refused(f"file_name leads out of the folder: {file_name}")
        if path.is_dir() and not files:
            raise Skipped(f"the folder is empty: {file_name}")
        if not all(file.is_file() for file in files):
            raise Skipped(f"the file is not in the folder: {file_name}")
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a NUL, a circle of links
        raise Refused(f"file_name cannot be followed: {error}") from error
    return files


def _meaning(entry: Entry) -> tuple[str, str, dict[str, str | None], dict[str, str]]:
    """Format, kind, columns and tags."""
    named = entry.columns or {}
    kind = "preference" if entry.ranking else "labels" if "kto_tag" in named else "chat"
    if entry.formatting == "alpaca":
        # Nothing but the prompt is read: LLaMA-Factory's way to say pretraining.
        if kind == "chat" and list(named) == ["prompt"]:
            return "text", "text", {"text": named["prompt"]}, {}
        return "alpaca", kind, _read(entry, ALPACA_COLUMNS), {}
    columns = _read(entry, TURNS_COLUMNS)
    if entry.formatting == "sharegpt":
        return "sharegpt", kind, columns, entry.tags
    if entry.tags and entry.columns is None:
        columns = {"messages": "conversations"}  # LLaMA-Factory's default, whatever the formatting
    renamed = any(entry.tags.get(tag, name) != name for tag, name in OPENAI_TAGS.items())
    if renamed or entry.ranking or "system" in named:
        # OpenAI's format has one shape; LLaMA-Factory's `openai` is ShareGPT's with other tags.
        return "sharegpt", kind, {"messages": "messages", **columns}, OPENAI_TAGS | entry.tags
    return "openai", kind, columns, {}


def _read(entry: Entry, names: tuple[str, ...]) -> dict[str, str | None]:
    """Those columns that LLaMA-Factory reads: of this formatting, and the pair only where rows are ranked; where there are
    `columns`, nothing that they do not name."""
    if entry.columns is None:
        return {}
    unread = ("response", "kto_tag") if entry.ranking else ("chosen", "rejected")
    read = {name: column for name, column in entry.columns.items() if name in names and name not in unread}
    return dict.fromkeys(name for name in names if name in OPTIONAL_COLUMNS) | read


def _no_unknown(value: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    if unknown := [key for key in value if key not in known]:
        raise Skipped(f"unknown key: {', '.join(prefix + key for key in unknown)}")


def _string(value: dict[str, Any], key: str) -> str:
    if not isinstance(value[key], str) or not value[key]:
        raise Refused(f"{key} must be a string")
    return str(value[key])


def _strings(value: dict[str, Any], key: str, known: tuple[str, ...]) -> dict[str, str]:
    """The object of strings under `key`, without what is null."""
    names = value.get(key, {})
    if not isinstance(names, dict):
        raise Refused(f"{key} must be an object")
    names = {name: item for name, item in names.items() if item is not None}
    _no_unknown(names, known, f"{key}.")
    return {name: _string(names, name) for name in names}
