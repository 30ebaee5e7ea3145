"""Chat templates as their families publish them, from TRL, which ships them byte for byte."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def published(name: str) -> str:
    """The text of the template that TRL calls `name`."""
    package = find_spec("trl")  # found without loading it
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
