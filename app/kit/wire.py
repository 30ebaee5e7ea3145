"""Small wire types that several nouns share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, ValidatorFunctionWrapHandler
from pydantic_core import InitErrorDetails

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


Kind = TypeVar("Kind", bound=BaseModel)


def by_type(
    kinds: Mapping[str, type[Kind]], default: str | None = None
) -> Callable[[Any, ValidatorFunctionWrapHandler], Kind]:
    """For `WrapValidator`: what a value is by its `type`. As a union's, its errors would name every type."""

    def validate(value: Any, _: ValidatorFunctionWrapHandler) -> Kind:
        if type(value) in kinds.values():
            return cast(Kind, value)
        name = value.get("type", default) if isinstance(value, dict) else default
        if not isinstance(name, str) or name not in kinds:
            known = " or ".join(f"'{each}'" for each in kinds)
            wrong = InitErrorDetails(type="literal_error", loc=("type",), input=name, ctx={"expected": known})
            raise ValidationError.from_exception_data("type", [wrong])
        return kinds[name].model_validate(value)

    return validate
