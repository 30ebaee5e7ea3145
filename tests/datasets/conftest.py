"""Helpers for tests of datasets: uploads, and what storage holds of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.datasets.helpers import jsonl


@pytest.fixture
def upload(client: httpx.Client) -> Callable[..., httpx.Response]:
    """Posts bytes, or rows as JSONL, as a raw body with the fields in the query."""

    def post(content: bytes | list[Any], **fields: str) -> httpx.Response:
        return client.post(
            "/datasets", content=content if isinstance(content, bytes) else jsonl(content), params=fields
        )

    return post


@pytest.fixture
def stored(service: str) -> Callable[[], set[str]]:
    """What storage holds now: blobs, and what is being received."""
    from app.settings import get_settings

    root = get_settings().home / "blobs"

    def listing() -> set[str]:
        found: list[Path] = []
        for folder, folders, files in os.walk(root):  # which passes over what is removed meanwhile
            received = folders if Path(folder).name == "incoming" else []
            found += [Path(folder, name) for name in [*received, *files]]
        return {str(path.relative_to(root)) for path in found}

    return listing


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets BURNISH_MAX_DECOMPRESSED_BYTES."""
    from app.settings import get_settings

    def limited(size: int) -> None:
        monkeypatch.setattr(get_settings(), "max_decompressed_bytes", size)

    return limited
