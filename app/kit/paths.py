"""What a path names."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

Id = Annotated[str, Path(description="The object's id.")]
NameOrId = Annotated[str, Path(description="The object's name or id.")]
