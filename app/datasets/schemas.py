"""Datasets on the wire."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from app.datasets.tables import Dataset
from app.kit.wire import Metadata, Strict

FormatName = Literal["alpaca", "openai"]


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it must not contain control characters")
    return value


class UploadFields(Strict):
    """What may come with a file: parts of the form, or the query."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)] | None = Field(
        None, description="A label; need not be unique. Default: the file's name.", examples=["rows"]
    )
    format: Literal["auto", FormatName] = Field("auto", description="How rows are read.")


class DatasetOut(BaseModel):
    """A dataset."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    kind: Literal["chat"]
    format: FormatName
    rows: int = Field(description="How many rows it has.")
    bytes: int = Field(description="Size of the file that was sent.")
    sha256: str = Field(description="SHA-256 of the file that was sent.")
    metadata: Metadata
    created_at: datetime


def dataset_out(dataset: Dataset) -> DatasetOut:
    """The wire form of a row."""
    return DatasetOut.model_validate(
        {
            "id": dataset.id,
            "name": dataset.name,
            "kind": dataset.kind,
            "format": dataset.format,
            "rows": dataset.rows,
            "bytes": dataset.file.bytes,
            "sha256": dataset.file.sha256,
            "metadata": dataset.meta,
            "created_at": dataset.created_at,
        }
    )


def upload_openapi() -> dict[str, Any]:
    """How the upload's body and query read in the OpenAPI document: the route takes the stream as it comes."""
    fields = UploadFields.model_json_schema()["properties"]
    file = {"type": "string", "format": "binary", "description": "JSONL, or a JSON array of objects, in UTF-8."}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {"file": file, **fields},
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form}, "application/octet-stream": {"schema": file}}
    query = [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema["description"]}
        for name, schema in fields.items()
    ]
    return {"requestBody": {"required": True, "content": content}, "parameters": query}
