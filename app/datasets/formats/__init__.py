"""The formats that rows come in: a row of the table for each format and kind, a module for each format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.datasets.formats import alpaca, openai, sharegpt, text, trl
from app.datasets.formats.layout import Layout, Reader

# In the order in which they are tried: a row that could be two things is the first.
READERS: tuple[Reader, ...] = (*sharegpt.READERS, *openai.READERS, *alpaca.READERS, *trl.READERS, *text.READERS)
FORMATS = tuple(dict.fromkeys(reader.format for reader in READERS))
COLUMNS = frozenset(name for reader in READERS for name in reader.columns) | {"images", "videos", "audios"}
TAGS = sharegpt.TAGS


Columns = Mapping[str, str | None]


def _named(columns: Columns) -> set[str]:
    """The fields that are somewhere."""
    return {name for name, key in columns.items() if key is not None}


def candidates(format: str, kind: str, columns: Columns, tags: Mapping[str, str]) -> Iterator[Reader]:
    """The readers that `format` and `kind` (`auto`: any) and the names of `columns` and `tags` leave to choose from."""
    for reader in READERS:
        asked = format in ("auto", reader.format) and kind in ("auto", reader.kind)
        if asked and _named(columns) <= reader.columns.keys() and (not tags or reader.format == "sharegpt"):
            yield reader


def layout_of(reader: Reader, columns: Columns, tags: Mapping[str, str], row: Mapping[str, Any]) -> Layout:
    """Where a reader finds its fields in rows like this one."""
    keys = dict(reader.columns)
    if "kto_tag" in keys and "kto_tag" in row:
        keys["kto_tag"] = "kto_tag"
    # A key that `columns` gives to one field is not another's by default: that one is read from where nothing is.
    taken = columns.values()
    found = {name: columns.get(name, None if key in taken else key) for name, key in keys.items()}
    return Layout({name: f"(no {name})" if key is None else key for name, key in found.items()}, TAGS | dict(tags))


def is_text_column(format: str, kind: str, columns: Columns) -> bool:
    """Whether a `prompt` means the text of pretraining rows, as it does in LLaMA-Factory where nothing answers it."""
    return format in ("auto", "text") and kind in ("auto", "text") and _named(columns) == {"prompt"}


def recognise(
    row: Mapping[str, Any], format: str, kind: str, columns: Columns, tags: Mapping[str, str]
) -> tuple[Reader, Layout] | None:
    """The reader for rows like this one, and where it finds its fields; None where no reader knows them.

    A format or a kind that is named needs no recognising where it leaves one reader.
    """
    if is_text_column(format, kind, columns):
        columns = {"text": columns["prompt"]}
    left = list(candidates(format, kind, columns, tags))
    for reader in left:
        layout = layout_of(reader, columns, tags, row)
        if len(left) == 1 or reader.marks(layout, row):
            return reader, layout
    # Rows of a format that is named are read as such, so that what they lack is said of each.
    if left and format != "auto":
        plain = next((reader for reader in left if reader.kind == "chat"), left[0])
        return plain, layout_of(plain, columns, tags, row)
    return None
