"""Small wire types that several nouns share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, datetime
from typing import Annotated, Any, TypeVar, cast

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic_core import InitErrorDetails

from app.kit.ids import is_id


def _no_id(name: str) -> str:
    if is_id(name):
        raise ValueError("a name must not look like an id, since names work wherever ids do")
    return name


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$"), AfterValidator(_no_id)]

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16, description="Labels of yours: at most 16 keys of 64 characters with values of 512."),
]


class Strict(BaseModel):
    """What a user sends: unknown fields are errors, and so are values of another type, but for an integer where a float is
    wanted; `NaN` and infinities are not numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def _as_moment(value: Any) -> Any:
    """RFC 3339 text as a moment; what is none is left to pydantic, which refuses it."""
    return datetime.fromisoformat(value) if isinstance(value, str) and _MOMENT.fullmatch(value) else value


_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)")

# A moment in a JSON body, which has no type of its own for it: RFC 3339 with a time zone.
Moment = Annotated[AwareDatetime, BeforeValidator(_as_moment)]


def _whole(text: Any) -> Any:
    if isinstance(text, str):
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise ValueError("Input should be a whole number in digits")
        return int(text)
    return text


def _flag(text: Any) -> Any:
    if isinstance(text, str):
        if text not in ("true", "false"):
            raise ValueError("Input should be 'true' or 'false'")
        return text == "true"
    return text


def _day(text: Any) -> Any:
    if isinstance(text, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", text):
        raise ValueError("Input should be a day such as 2026-11-23")
    return text


# Values of queries and headers, which are text: pydantic alone would also read `8.0`, `yes` and seconds since 1970.
WholeNumber = Annotated[int, BeforeValidator(_whole)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Day = Annotated[date, BeforeValidator(_day)]


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
