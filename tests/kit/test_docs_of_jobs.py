"""The table of a job's fields in docs/api.md says what the schema says: names, values, ranges and defaults."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from app.jobs.hyperparameters import HYPERPARAMETERS
from app.jobs.methods import METHODS
from app.jobs.schemas import JobCreate
from app.jobs.spec import Check, Deploy, Replay, Resources, Validation
from tests.conftest import REPOSITORY

PARTS: dict[str, list[type[BaseModel]]] = {
    "method": [*METHODS.values()],
    "hyperparameters": [*HYPERPARAMETERS.values()],
    "validation": [Validation],
    "replay": [Replay],
    "check": [Check],
    "deploy": [Deploy],
    "resources": [Resources],
}
# Defaults that depend on something else, or are said shortly.
IN_WORDS = {
    "name": "made from base and id",
    "method.type": "`lora`",
    "method.alpha": "2 × rank",
    "hyperparameters.reward": "`exact_match`",
    "chat_template": "null: the base model's",
    "template_arguments": "the base model's",
    "validation.seed": "`hyperparameters.seed`",
    "validation.keep": "`last`; with `patience` `best`",
}
RANGE = re.compile(r"(above )?(-?[\d.]+)(?:,? (to below|to|at most)) (-?[\d.]+)")


def documented() -> dict[str, tuple[str, str]]:
    """Each field's type and default as they are written."""
    section = (REPOSITORY / "docs/api.md").read_text().partition("### `POST /jobs`")[2]
    table = re.split(r"\n\n", section[section.index("\n| field |") + 1 :])[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| ?(.*?) \| .*\|$", table, re.MULTILINE)
    assert len(rows) == len(table.splitlines()) - 2
    return {name: (type, default) for name, type, default in rows}


def schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each field's name and JSON schema, one of each class that has it."""
    for prefix, models in ({"": [JobCreate]} | PARTS).items():
        for model in models:
            made = model.model_json_schema()
            for name, schema in made["properties"].items():
                if prefix or name not in PARTS:
                    required = name in made.get("required", [])
                    yield f"{prefix}.{name}".lstrip("."), schema | {"required": required}


FIELDS: dict[str, list[dict[str, Any]]] = {}
for field, schema in schemas():
    FIELDS.setdefault(field, []).append(schema)
DOCUMENTED = documented()


def values_of(schema: dict[str, Any]) -> set[str]:
    """What the field may be: words, and numbers as "(1" for above 1, "[1" for from 1, and so on. Free texts, lists and objects
    are not looked into."""
    found = set[str]()
    for branch in schema.get("anyOf", [schema]):
        if "enum" in branch or "const" in branch:
            found |= {json.dumps(each).strip('"') for each in branch.get("enum", [branch.get("const")])}
        elif branch.get("type") in ("integer", "number"):
            low = f"({branch['exclusiveMinimum']:g}" if "exclusiveMinimum" in branch else f"[{branch['minimum']:.15g}"
            high = f"{branch['exclusiveMaximum']:g})" if "exclusiveMaximum" in branch else f"{branch['maximum']:.15g}]"
            found.add(f"{low} {high}")
        else:
            found |= {"boolean": {"true", "false"}, "null": {"null"}}.get(branch.get("type", ""), set())
    return found


def values_said(cell: str) -> set[str]:
    cell = re.sub(r"(?<=\d),(?=\d)", "", cell)
    words = {each.strip('"') for each in re.findall(r"`([^`]*)`", cell)}
    words |= set(re.findall(r"\b(?:true|false|null)\b", cell))
    ranges = {
        f"{'(' if above else '['}{low} {high}{')' if to == 'to below' else ']'}"
        for above, low, to, high in RANGE.findall(cell)
    }
    return words | ranges


def default_of(schema: dict[str, Any]) -> str:
    if schema["required"]:
        return "required"
    value = schema.get("default", {})  # else made by a function: of `metadata`, an empty object
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def test_the_docs_name_every_field_of_a_job_and_no_other() -> None:
    assert DOCUMENTED.keys() == FIELDS.keys()


@pytest.mark.parametrize("field", FIELDS)
def test_the_docs_say_what_a_field_may_be_and_what_it_is_by_default(field: str) -> None:
    values, default = DOCUMENTED[field]
    assert values_said(values) == set[str]().union(*map(values_of, FIELDS[field]))
    if field in IN_WORDS:
        assert default == IN_WORDS[field]
    else:
        assert {each.strip('`"') for each in default.split(" or ")} == set(map(default_of, FIELDS[field]))
