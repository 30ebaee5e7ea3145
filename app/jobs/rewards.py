"""What answers are rewarded for in reinforcement learning: a class per `type`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WrapValidator, field_validator, model_validator

from app.kit.wire import Strict, by_type


class _Reward(Strict):
    weight: float = Field(1.0, ge=-1000, le=1000, description="What it counts for in the sum of all rewards.")


class ExactMatch(_Reward):
    """1 where the answer is the row's reference, white space at both ends apart, else 0."""

    type: Literal["exact_match"] = Field(description="The reward.")


class NumberMatch(_Reward):
    """1 where the last number of the answer is the last one of the row's reference, else 0."""

    type: Literal["number_match"] = Field(description="The reward.")


class JsonValid(_Reward):
    """1 where the answer is a JSON object or array, else 0."""

    type: Literal["json_valid"] = Field(description="The reward.")


class Regex(_Reward):
    """1 where the pattern is found in the answer, else 0."""

    type: Literal["regex"] = Field(description="The reward.")
    pattern: str = Field(min_length=1, max_length=1000, description="A regular expression of Python's.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"it is no regular expression: {error}") from error
        return pattern


class Length(_Reward):
    """1 for an answer of `min` to `max` characters; one that is shorter gets its share of `min`, and what is longer loses that
    share of `max` by which it is longer, down to 0."""

    type: Literal["length"] = Field(description="The reward.")
    min: int = Field(1, ge=0, le=1_000_000, description="Characters.")
    max: int = Field(ge=1, le=1_000_000, description="Characters.")

    @model_validator(mode="after")
    def _in_order(self) -> Length:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class ByModel(_Reward):
    """The score that a reward model of the project, or one that is granted to it, gives the answer."""

    type: Literal["model"] = Field(description="The reward.")
    model: str = Field(min_length=1, max_length=64, description="Name or id of a reward model; a job has its id.")


Reward = ExactMatch | NumberMatch | JsonValid | Regex | Length | ByModel
REWARDS: dict[str, type[Reward]] = {
    "exact_match": ExactMatch, "number_match": NumberMatch, "json_valid": JsonValid, "regex": Regex, "length": Length,
    "model": ByModel,
}  # fmt: skip
# Those that compare with a row's reference.
OF_REFERENCE = ("exact_match", "number_match")


def _as_list(value: Any) -> Any:
    """One reward need not be in a list, and one that needs nothing else may be its name, or that of a reward model."""

    def named(each: Any) -> Any:
        if not isinstance(each, str):
            return each
        return {"type": each} if each in REWARDS else {"type": "model", "model": each}

    return [named(each) for each in (value if isinstance(value, list) else [value])]


AnyReward = Annotated[Reward, WrapValidator(by_type(REWARDS))]
Rewards = Annotated[
    list[AnyReward],
    Field(min_length=1, max_length=16),
    BeforeValidator(_as_list, json_schema_input_type=str | AnyReward | list[str | AnyReward]),
]
