"""The OpenAPI document is complete, its pages need no network, and what the service answers is what it says: schemathesis
makes up requests from it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sqlalchemy import select

from app.kit.database import reading
from app.main import create_app
from app.projects import service as projects
from app.settings import get_settings
from app.workers.tables import Worker
from tests.datasets.helpers import jsonl, new_row
from tests.projects.conftest import fine_tune
from worker.presence import Presence
from worker.slots import Slots

# Per operation and column. More, and other ones each time: BURNISH_TEST_EXAMPLES=1000.
EXAMPLES = int(os.environ.get("BURNISH_TEST_EXAMPLES", "15"))
ON_SCHEMA = (
    status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance
)  # fmt: skip
# What its engine says is the engine's; that none answers here is what the document says.
ENGINES = ("/v1/chat/completions", "/v1/completions")
# No worker runs behind it either.
READY = "/ready"

# Bodies that can be answered, where made-up ones hardly ever can; the id of a dataset that is there is filled in.
BODIES = {
    "post /jobs": {"base_model": "demo-base", "dataset": "datasets"},
    "post /datasets/{id}/preview": {"base_model": "demo-base"},
    "post /datasets/{id}/check": {"base_model": "demo-base"},
    "post /webhooks": {"url": "https://example.org"},
}

DOCUMENT = create_app().openapi()
OPERATIONS = [(path, method) for path, item in DOCUMENT["paths"].items() for method in item]
SCHEMAS = DOCUMENT["components"]["schemas"]


def operation(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


@pytest.fixture(scope="module")
def key(service: str) -> str:
    return projects.create_key("default", "admin", "schemathesis", None)[1]


@pytest.fixture(scope="module")
def there(service: str, key: str) -> dict[str, str]:
    """Names of objects that there are, by the first part of the paths that name them."""
    with httpx.Client(base_url=service, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        dataset = client.post("/datasets", content=jsonl([new_row() for _ in range(3)])).raise_for_status().json()
        # Processes that render and convert start slowly on a busy machine, and the calls below wait for ten seconds each.
        client.post(f"/datasets/{dataset['id']}/preview", json={"base_model": "demo-base"}).raise_for_status()
        mendable = b'{"instruction": "a", "output": "b"}\n{"instruction": "a", "output": "b",}\n'
        report = client.post("/datasets", content=mendable).json()["error"]["report"]
        job = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset["id"]}).raise_for_status().json()
        client.put("/secrets/hf_token", json={"value": "x"}).raise_for_status()
        hook = client.post("/webhooks", json={"url": "https://example.org/there"}).raise_for_status().json()["id"]
        delivery = client.post(f"/webhooks/{hook}/test").raise_for_status().json()["id"]
        project = client.post("/projects", json={"name": "there"}).raise_for_status().json()["id"]
        made = client.post("/keys", json={"role": "read"}).raise_for_status().json()["id"]
        # The renderer starts now: schemathesis waits ten seconds for an answer.
        client.post(f"/datasets/{dataset['id']}/preview", json={"base_model": "demo-base"}).raise_for_status()
        fine_tune("default", "there")
        client.put("/models/there/grants/there").raise_for_status()
    Presence("training", Slots([], 1)).report()
    with reading() as session:
        worker = session.scalars(select(Worker.id)).one()
    return {
        "datasets": dataset["id"], "reports": report, "jobs": job["id"], "secrets": "hf_token", "projects": project,
        "keys": made, "models": "there", "v1": "demo-base", "workers": worker, "webhooks": hook,
        "delivery": delivery,
    }  # fmt: skip


@pytest.fixture(scope="module")
def document(service: str) -> Iterator[Any]:
    """The document of the service; no engine runs behind it, and nobody waits for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "engine_wait_seconds", 0.1)
        yield schemathesis.openapi.from_url(f"{service}/openapi.json")


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_answer_is_off_its_schema(document: Any, there: dict[str, str], key: str, path: str, method: str) -> None:
    never, noun = () if path in (*ENGINES, READY) else (not_a_server_error,), path.split("/")[1]

    @hypothesis.given(case=document[path][method].as_strategy(), is_there=st.booleans())
    @hypothesis.settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="BURNISH_TEST_EXAMPLES" not in os.environ,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def answers(case: Any, is_there: bool) -> None:
        if is_there and method != "delete":  # what is there stays for the others
            case.path_parameters = {
                name: {"project": "there", "delivery": there["delivery"]}.get(name, there[noun])
                for name in case.path_parameters
            }
            if body := BODIES.get(f"{method} {path}"):
                case.body = {name: there.get(value, value) for name, value in body.items()}
        case.call_and_validate(headers={"Authorization": f"Bearer {key}"}, checks=[*never, *ON_SCHEMA])

    answers()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_an_operation_is_told_in_full(path: str, method: str) -> None:
    told = operation(path, method)
    assert told["summary"]
    assert told["tags"]
    assert re.fullmatch(r"[a-z_]+", told["operationId"])
    assert path in ("/", "/health", READY) or told["security"]
    assert all(parameter.get("description") for parameter in told.get("parameters", []))
    for status, answer in told["responses"].items():
        if int(status) < 400:
            assert "content" in answer or int(status) == 204
            continue
        content = answer["content"]["application/json"]
        assert answer["description"]
        assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
        assert content["example"]["error"]["hint"], f"{status} tells nobody what to do"
    for content in told.get("requestBody", {}).get("content", {}).values():
        assert "example" in content or has_examples(content["schema"])


def has_examples(schema: dict[str, Any]) -> bool:
    """Whether there is an example of every field that a request must have, and a sentence about every field it may."""
    if "$ref" in schema:
        schema = SCHEMAS[schema["$ref"].rsplit("/", 1)[1]]
    fields = schema.get("properties", {})
    for name, field in fields.items():
        assert field.get("description"), f"{schema.get('title')}.{name} is not described"
        if "$ref" in field:
            assert has_examples(field)
    needed = [fields[name] for name in schema.get("required", [])]
    return all("examples" in field or "$ref" in field or field.get("format") == "binary" for field in needed)


def test_operations_have_names_of_their_own() -> None:
    names = [operation(path, method)["operationId"] for path, method in OPERATIONS]
    assert len(set(names)) == len(names)
    assert "HTTPValidationError" not in SCHEMAS  # the one error body is ours


def test_the_docs_page_needs_no_other_host(service: str, key: str) -> None:
    page = httpx.get(f"{service}/docs")
    linked = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(linked) >= 4
    for link in linked:
        answer = httpx.get(urljoin(service, link))
        assert (answer.status_code, answer.url.host) == (200, "127.0.0.1"), link
        assert len(answer.content) > 500
    assert '"validatorUrl": null' in page.text
    assert httpx.get(f"{service}/redoc").status_code == 404
