"""Small wire types that several nouns share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16, description="Labels of yours: at most 16 keys of 64 characters with values of 512."),
]


class Strict(BaseModel):
    """What a user sends: unknown fields are errors; `NaN` and infinities are not numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Failure(BaseModel):
    """Why something failed, and what to do."""

    code: str
    message: str
    hint: str | None = None


class Reference(BaseModel):
    """Another object, by id and name."""

    id: str
    name: str
