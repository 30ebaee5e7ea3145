"""Where models come from beside directories and hubs: nouns that keep weights say so here, so that imports go one way only."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.models.tables import Model


class Source(NamedTuple):
    """`fetch(model)` brings what `adopt` reads of storage to this machine: no transaction waits for an object store.
    `adopt(session, model)` makes the new model a fine-tune of what its source names, ready or merging, and holds that until
    the transaction ends; raises what the caller is to be told. `release(model)`: the model's row is gone."""

    fetch: Callable[[Model], None]
    adopt: Callable[[Session, Model], None]
    release: Callable[[Model], None]


# By the scheme of their URLs.
SOURCES: dict[str, Source] = {}


def source_of(model: Model) -> Source | None:
    """The noun that keeps the model's weights; None where the model has files of its own."""
    return SOURCES.get(model.source.partition("://")[0]) if "://" in model.source else None
