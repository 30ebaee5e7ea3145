"""Whose request it is. Until keys exist, the default project's."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends

from app.kit.database import DEFAULT_PROJECT


def current_project() -> str:
    """The id of the project that the request acts in."""
    return DEFAULT_PROJECT


ProjectId = Annotated[str, Depends(current_project)]
