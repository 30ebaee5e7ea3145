"""Text rows, for pretraining: `text`."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from app.datasets.formats.layout import Layout, Place, Reader, has, struct
from app.datasets.turns import Row


def _shape(layout: Layout) -> type[Struct]:
    return struct("TextRow", [("text", str)], layout)


def _read(row: Any, layout: Layout) -> Row:
    return Row(text=row.text)


def _place(row: Any, layout: Layout, place: Place) -> str:
    return layout.keys["text"]


READERS = (
    Reader(
        "text", "text", {"text": "text"}, lambda layout, row: has(layout, row, "text"), _shape, _read, _place, "'text'"
    ),
)
