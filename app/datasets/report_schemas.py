"""Reports on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from app.datasets.tables import Report
from app.kit.errors import Problem


class ReportOut(BaseModel):
    """What reading a file found."""

    id: str
    object: Literal["report"] = "report"
    dataset: str | None = Field(description="The dataset that the file became, or null where it was refused.")
    filename: str
    rows: int
    bad_rows: int = Field(description="Rows that cannot be trained on.")
    repairable_rows: int = Field(description="Those of them that GET /reports/{id}/repaired mends.")
    complete: bool = Field(description="False where reading ended after 100,000 bad rows.")
    problems: list[Problem]
    created_at: datetime
    expires_at: datetime | None


def report_out(report: Report, dataset: str | None) -> ReportOut:
    """The wire form of a row."""
    names = ("id", "rows", "bad_rows", "repairable_rows", "complete", "problems", "created_at", "expires_at")
    fields = {name: getattr(report, name) for name in names}
    return ReportOut.model_validate(fields | {"dataset": dataset, "filename": report.file.filename})
