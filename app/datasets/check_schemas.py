"""Preview and check on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from app.kit.wire import Strict
from app.models.chat_templates import OwnArguments, OwnTemplate


class RenderRequest(Strict):
    """For which base model, by which chat template, and up to which length, rows are rendered."""

    base_model: str = Field(
        min_length=1, max_length=64, description="Name or id of a base model.", examples=["demo-base"]
    )
    chat_template: OwnTemplate = None
    template_arguments: OwnArguments = None
    max_length: int | None = Field(
        None, ge=8, le=1_048_576, description="Tokens. Default: the base model's context, at most 2048."
    )


class PreviewRequest(RenderRequest):
    """Which row to show."""

    row: int = Field(0, ge=0, description="Its number, from 0.")


class CheckRequest(RenderRequest):
    """What to check the rows for."""

    validation: str | None = Field(
        None, max_length=200, description="Name or id of a dataset to look for the same rows in."
    )


class Sequence(BaseModel):
    """One text as the model sees it, cut to `max_length` tokens."""

    part: Literal["conversation", "chosen", "rejected", "text", "prompt"]
    text: str
    token_ids: list[int]
    tokens: list[str] = Field(description="What each token stands for; joined they are the text.")
    loss_mask: list[int] = Field(description="1 where a token is learned.")
    cut_tokens: int = Field(description="Tokens beyond max_length, which are left out.")


class PreviewOut(BaseModel):
    """What the model will see of one row."""

    object: Literal["dataset.preview"] = "dataset.preview"
    dataset: str
    base_model: str
    row: int
    max_length: int
    sequences: list[Sequence]


class Bin(BaseModel):
    """Rows whose length is at least `from` and below `to`."""

    model_config = ConfigDict(populate_by_name=True)

    from_: int = Field(alias="from")
    to: int
    rows: int


class Tokens(BaseModel):
    """Tokens before the cut; the length of a row is that of its longest sequence."""

    total: int
    loss: int
    loss_share: float
    min: int
    mean: float
    p50: int
    p90: int
    p99: int
    max: int
    histogram: list[Bin]


class Cut(BaseModel):
    """What `max_length` cuts off: of how many rows, how many tokens, and how many answers' end-of-turn tokens."""

    rows: int
    tokens: int
    end_of_turn: int


class TemplateReport(BaseModel):
    """What the chat template did with the rows."""

    generation_markers: bool
    refused_rows: int
    first_refusal: str | None


class Pair(BaseModel):
    """A row and the validation row that it is, or nearly is."""

    row: int
    validation_row: int
    similarity: float


class Overlap(BaseModel):
    """How many rows are in the validation dataset too; of the pairs the first hundred."""

    exact: int
    near: int
    pairs: list[Pair]


class CheckOut(BaseModel):
    """What training would make of the rows."""

    object: Literal["dataset.check"] = "dataset.check"
    dataset: str
    base_model: str
    max_length: int
    rows: int
    rows_checked: int
    tokens: Tokens
    cut: Cut
    without_loss: int
    template: TemplateReport
    overlap: Overlap | None
