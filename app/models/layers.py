"""Which of a model's weights adapters can go on, told by their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def modules_of(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The names of the modules of a model's blocks that have a weight matrix, from its weights' full names and shapes.

    Blocks are numbered; embeddings and the output's layer, on which engines take no adapters, are in none.
    """
    return sorted({name.split(".")[-2] for name, shape in shapes.items() if _is_layer(name, shape)})


def _is_layer(name: str, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and name.endswith(".weight") and any(part.isdigit() for part in name.split("."))
