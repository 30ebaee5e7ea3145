"""The one way a command fails: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Failure(Exception):
    """Ends the command with exit code 1, its message and hint on stderr.

    `param` is the field that was refused, `problems` what is wrong with the rows of a dataset (`problem_count` of them in
    all), `report` the id of the report that has every one. `others` are further refusals of the same request, each with
    `message`, `param` and `hint`.
    `temporary` says that the same request may succeed later: the connection was lost, or the service is not well.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        problems: Sequence[dict[str, Any]] = (),
        problem_count: int = 0,
        report: str | None = None,
        others: Sequence[dict[str, Any]] = (),
        temporary: bool = False,
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.param = message, hint, param
        self.problems, self.problem_count, self.report = problems, problem_count, report
        self.others, self.temporary = others, temporary
