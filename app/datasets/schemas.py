"""Datasets on the wire."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from app.datasets.formats import COLUMNS, TAGS
from app.datasets.reading import Options
from app.datasets.tables import Dataset
from app.kit.bodies import read_json
from app.kit.errors import Problem, ServiceError
from app.kit.wire import Metadata, Strict

FormatName = Literal["alpaca", "sharegpt", "openai", "trl", "text"]
KindName = Literal["chat", "preference", "labels", "text", "prompts"]


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it must not contain control characters")
    return value


def _from_json(value: Any) -> Any:
    """The object that a field's JSON text holds."""
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"it must be a JSON object: {error}") from None
    except ServiceError as error:
        raise ValueError(error.message.rstrip(".")) from None


def _only(known: frozenset[str]) -> AfterValidator:
    def check(value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name not in known:
                raise ValueError(f"'{name[:40]}' is unknown; known are {', '.join(sorted(known))}")
        return value

    return AfterValidator(check)


def _key(value: str) -> str:
    if not value.isprintable() or '"' in value or "\\" in value:
        raise ValueError("it must not contain quotes, backslashes or control characters")
    return value


Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_key)]


class UploadFields(Strict):
    """What may come with a file: parts of the form, or the query."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)] | None = Field(
        None, description="A label; need not be unique. Default: the file's name.", examples=["rows"]
    )
    format: Literal["auto", FormatName] = Field("auto", description="How rows are read.")
    kind: Literal["auto", KindName] = Field("auto", description="What rows are for, where a file could be two things.")
    columns: Annotated[dict[Key, Key | None], BeforeValidator(_from_json), _only(COLUMNS)] = Field(
        default_factory=dict,
        description="JSON text: where the format's fields are, names as in LLaMA-Factory's dataset_info.json; null: nowhere.",
        examples=['{"prompt": "question", "response": "answer"}'],
    )
    tags: Annotated[dict[Key, Key], BeforeValidator(_from_json), _only(frozenset(TAGS))] = Field(
        default_factory=dict,
        description="JSON text: what ShareGPT's keys and roles are called.",
        examples=['{"role_tag": "role", "user_tag": "user"}'],
    )
    on_bad_rows: Literal["reject", "drop"] = Field(
        "reject", description="Refuse a file with rows that cannot be trained on, or store it without them."
    )

    def options(self) -> Options:
        """The fields that say how rows are read."""
        return Options(self.format, self.kind, self.columns, self.tags, self.on_bad_rows)


class Statistics(BaseModel):
    """What the rows are like."""

    turns: int = Field(description="Turns of all rows; of texts, the texts.")
    characters: int
    repeats: int = Field(description="Rows that repeat an earlier one.")
    labels: dict[str, int] | None = Field(description="How often each answer occurs, where at most 20 do.")
    scripts: dict[str, float] = Field(description="Shares of scripts among the letters of the first rows.")
    references: int | None = Field(None, description="Rows with a reference. Null where they were not counted yet.")


class DatasetOut(BaseModel):
    """A dataset."""

    id: str
    object: Literal["dataset"] = "dataset"
    name: str
    kind: KindName
    format: FormatName
    container: Literal["json", "jsonl", "csv", "tsv", "parquet", "text"]
    columns: dict[str, str | None]
    tags: dict[str, str]
    on_bad_rows: Literal["reject", "drop"]
    rows: int = Field(description="How many rows it has.")
    dropped_rows: int = Field(description="Rows of the file that cannot be trained on and were left out.")
    bytes: int = Field(description="Size of the file that was sent.")
    sha256: str = Field(description="SHA-256 of the file that was sent.")
    report: str = Field(description="Id of the report on the file.")
    statistics: Statistics
    problems: list[Problem] = Field(description="The report's: the first of each code, and how many.")
    metadata: Metadata
    created_at: datetime


def dataset_out(dataset: Dataset) -> DatasetOut:
    """The wire form of a row."""
    report = dataset.report
    return DatasetOut.model_validate(
        {
            "id": dataset.id,
            "name": dataset.name,
            "kind": dataset.kind,
            "format": dataset.format,
            "container": dataset.container,
            "columns": report.options["columns"],
            "tags": report.options["tags"],
            "on_bad_rows": report.options["on_bad_rows"],
            "rows": dataset.rows,
            "dropped_rows": report.bad_rows,
            "bytes": dataset.file.bytes,
            "sha256": dataset.file.sha256,
            "report": report.id,
            "statistics": dataset.statistics,
            "problems": report.problems,
            "metadata": dataset.meta,
            "created_at": dataset.created_at,
        }
    )


def upload_openapi() -> dict[str, Any]:
    """How the upload's body and query read in the OpenAPI document: the route takes the stream as it comes."""
    fields = UploadFields.model_json_schema()["properties"]
    for name in ("columns", "tags"):  # a form and a query hold text
        fields[name] = {
            "type": "string",
            "contentMediaType": "application/json",
            "default": "{}",
            **{key: fields[name][key] for key in ("description", "examples", "title")},
        }
    description = "JSONL, a JSON array, CSV, TSV, Parquet or text, by itself or compressed with gzip or zstd."
    file = {"type": "string", "format": "binary", "description": description}
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
