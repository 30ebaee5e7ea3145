"""Native routes coerce nothing: a value has the type that the document says, or the request is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

import app.main  # noqa: F401 - loads every request model
from app.jobs.spec import JobSpec
from app.kit.wire import Strict

# A value that is not of the type, by the type: what JSON's types are often taken for.
WRONG = {"number": (True, "8", [8]), "integer": (True, "8", 8.5, 8.0, [8]), "boolean": (1, 0, "yes", "true", 1.0)}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("learning_rate", True),
        ("batch_size", True),
        ("seed", False),
        ("gradient_checkpointing", "yes"),
        ("batch_size", "8"),
        ("batch_size", 8.0),
        ("packing", 1),
        ("epochs", "3"),
    ],
)
@pytest.mark.parametrize("dry_run", ["false", "true"])
def test_a_coerced_value_starts_no_job(client: httpx.Client, path: str, value: object, dry_run: str) -> None:
    body = {"base_model": "demo-base", "dataset": "ds_none", "hyperparameters": {path: value}}
    answer = client.post("/jobs", params={"dry_run": dry_run}, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "invalid_value")
    assert (error["param"], repr(value) in error["message"]) == (f"hyperparameters.{path}", True), error


def test_an_integer_passes_where_a_float_is_wanted(client: httpx.Client) -> None:
    body = {"base_model": "none", "dataset": "ds_none", "hyperparameters": {"epochs": 3, "weight_decay": 0}}
    error = client.post("/jobs", json=body).json()["error"]
    assert error["code"] == "model_not_found"  # nothing is said of the numbers


def request_models() -> list[type[Strict]]:
    def below(kind: type[Strict]) -> Iterator[type[Strict]]:
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return sorted(set(below(Strict)), key=lambda model: model.__qualname__)


def types_of(schema: dict[str, Any], definitions: dict[str, Any]) -> set[str]:
    """The JSON types that a value may have; an enumeration's are left out, since its values are compared."""
    if "$ref" in schema:
        return types_of(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    variants = schema.get("anyOf") or schema.get("oneOf")
    if variants:
        return set().union(*(types_of(each, definitions) for each in variants))
    return set() if "enum" in schema or "const" in schema else {str(schema.get("type"))}


def refuses(model: type[BaseModel], field: str, value: object) -> bool:
    try:
        model.model_validate({field: value})
    except ValidationError as error:
        return any(problem["loc"][0] == field for problem in error.errors())
    return False


def wrong_values() -> Iterator[tuple[type[Strict], str, object]]:
    for model in request_models():
        schema = model.model_json_schema()
        for field, own in schema.get("properties", {}).items():
            types = types_of(own, schema.get("$defs", {}))
            others = {"boolean": bool, "string": str, "array": list, "number": (int, float), "integer": int}
            allowed = tuple(others[each] for each in types & others.keys() if each not in ("number", "integer"))
            for type_ in types & WRONG.keys():
                for value in WRONG[type_]:
                    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
                    if isinstance(value, allowed) or (numeric and type_ == "boolean" and types & {"number", "integer"}):
                        continue
                    yield model, field, value


def test_no_field_of_any_request_takes_a_value_of_another_type() -> None:
    asked = list(wrong_values())
    assert len(asked) > 300  # they were found
    taken = [
        f"{model.__name__}.{field}: {value!r}" for model, field, value in asked if not refuses(model, field, value)
    ]
    assert taken == []


def test_every_body_of_a_native_route_is_one_of_these_models(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    strict = {model.__name__ for model in request_models()}
    bodies = {
        f"{method} {path}": operation["requestBody"]["content"].get("application/json", {}).get("schema")
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if "requestBody" in operation and not path.startswith("/v1/")
    }
    names = {route: schema["$ref"].rpartition("/")[2] for route, schema in bodies.items() if schema}
    assert len(names) > 10
    assert {route: name for route, name in names.items() if name not in strict} == {}
    assert [route for route, schema in bodies.items() if not schema] == ["post /datasets"]  # its fields are text


def query_parameters(document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(path, name, type) of every parameter of a GET, and of POST /jobs, that is not text."""
    for path, item in document["paths"].items():
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                [type_, *_] = sorted(types_of(parameter["schema"], {}) - {"null"}) or ["enum"]
                if parameter["in"] == "query" and type_ in ("integer", "boolean") and not path.startswith("/v1/"):
                    yield path, parameter["name"], type_


def test_queries_are_read_strictly_too(client: httpx.Client) -> None:
    found = set(query_parameters(client.get("/openapi.json").json()))
    assert ("/jobs", "dry_run", "boolean") in found
    assert len(found) > 10
    for path, name, type_ in found:
        method = "POST" if name == "dry_run" else "GET"
        for value in {"integer": ("8.0", "1e1", " 8", "+8", "1_0", "true", ""), "boolean": ("yes", "1", "True", "")}[
            type_
        ]:
            answer = client.request(method, path.replace("{", "").replace("}", ""), params={name: value}, json={})
            entries = answer.json()["error"].get("errors") or [answer.json()["error"]]
            assert (answer.status_code, name in [each["param"] for each in entries]) == (422, True), (path, name, value)


@pytest.mark.parametrize("value", [1700000000, "1700000000", "2027-01-01", "2027-01-01T00:00:00", True])
def test_a_moment_is_rfc_3339_with_a_time_zone(client: httpx.Client, value: object) -> None:
    answer = client.post("/keys", json={"role": "read", "expires_at": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "expires_at")


def test_a_spec_that_was_stored_loads() -> None:
    asked = {
        "stage": "rl", "method": {"type": "qlora", "rank": 4, "plus": 16}, "validation": {"fraction": 0.5, "seed": 1, "every": 3},
        "hyperparameters": {"epochs": 2, "reward": ["json_valid", {"type": "length", "max": 9, "weight": 2}]},
        "template_arguments": {"a": 1, "b": 1.5, "c": True, "d": None, "e": "x"},
    }  # fmt: skip
    stored = JobSpec.model_validate(asked).model_dump(mode="json")
    assert JobSpec.model_validate(stored).model_dump(mode="json") == stored
    assert stored["template_arguments"] == asked["template_arguments"]
