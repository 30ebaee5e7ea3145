"""The route of reward models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.chat.gateway import score
from app.kit.errors import errors
from app.kit.paths import NameOrId
from app.kit.routing import NativeRoute
from app.kit.wire import Strict
from app.projects.access import ToInfer

router = APIRouter(prefix="/models", tags=["models"], route_class=NativeRoute)


class ScoreRequest(Strict):
    """Conversations to score."""

    conversations: Annotated[list[Annotated[list[dict[str, Any]], Field(min_length=2)]], Field(min_length=1)] = Field(
        max_length=64,
        description="Messages as in chat; the last one of each is the assistant's answer that is judged.",
        examples=[[[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]]],
    )


class Score(BaseModel):
    """The score of one conversation; only differences between scores of the same model mean something."""

    object: Literal["score"]
    index: int
    score: float


class Tokens(BaseModel):
    """What was read."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Scores(BaseModel):
    """The scores, in the conversations' order."""

    object: Literal["list"]
    model: str
    data: list[Score]
    usage: Tokens


@router.post(
    "/{name}/score",
    summary="Score answers with a reward model",
    response_model=None,
    responses={200: {"model": Scores}, **errors(400, 404, 422, 502, 503)},
)
async def score_answers(name: NameOrId, request: Request, body: ScoreRequest, project: ToInfer) -> Response:
    return await score(request, project, name, body.conversations)
