"""What holds for every route: one error body, lists that page, the loopback guards, and a document that matches the docs."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest

from tests.conftest import REPOSITORY


def test_health_says_that_the_api_answers(client: httpx.Client) -> None:
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("PUT", "/jobs", 405, "method_not_allowed"),
        ("GET", "/jobs/job_none", 404, "job_not_found"),
        ("GET", "/models/none", 404, "model_not_found"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/datasets/ds_none", 404, "dataset_not_found"),
        ("DELETE", "/datasets/ds_none", 404, "dataset_not_found"),
        ("GET", "/jobs?limit=0", 422, "invalid_value"),
        ("GET", "/jobs?status=odd", 422, "invalid_value"),
    ],
)
def test_every_error_has_the_one_body(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert {"message", "type", "param", "code", "hint"} <= set(error)


@pytest.mark.parametrize("path", ["/jobs/%00", "/models/%00", "/datasets/%00", "/v1/models/%00", "/jobs?after=%00"])
def test_a_nul_character_is_no_fault_of_the_service(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code in (200, 404, 422)
    answer = client.post("/models", json={"name": "nul", "source": "hf://a/b", "metadata": {"a": "\x00"}})
    assert answer.status_code in (202, 409, 422)


def test_a_body_over_the_limit_is_refused(client: httpx.Client) -> None:
    body = b'{"name": "' + b"x" * (17 * 2**20) + b'"}'
    answer = client.post("/models", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    chunks = (body[start : start + 2**20] for start in range(0, len(body), 2**20))
    answer = client.post("/models", content=chunks, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_the_root_leads_browsers_to_the_docs_and_others_to_every_page(client: httpx.Client) -> None:
    page = client.get("/", headers={"Accept": "text/html,*/*;q=0.8"}, follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/docs")
    links = client.get("/").json()
    assert (links.pop("object"), bool(links.pop("version"))) == ("service", True)
    assert {client.get(f"/{link}").status_code for link in links.values()} <= {200, 503}


def test_head_answers_as_get_does_without_the_body(client: httpx.Client) -> None:
    """Every GET route of the document, with an object that is there or is not."""
    paths = [path for path, item in client.get("/openapi.json").json()["paths"].items() if "get" in item]
    assert len(paths) > 30
    for path in [*paths, "/docs", "/openapi.json", "/nothing", "/models/demo-base", "/v1/models/demo-base"]:
        url = re.sub(r"\{\w+\}", "none", path)
        got, head = client.get(url), client.head(url)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        names = {"content-type", "content-length", "allow", "www-authenticate", "location"}
        if path != "/metrics":  # counts what it was asked
            assert {name: head.headers.get(name) for name in names} == {name: got.headers.get(name) for name in names}
    assert client.head("/jobs/none/cancel").status_code == client.get("/jobs/none/cancel").status_code == 405


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "burnish.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
)
def test_a_web_page_of_elsewhere_cannot_reach_the_service(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.get("/models", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden_origin")


def test_the_service_s_own_pages_may_call_it(client: httpx.Client) -> None:
    origin = f"http://{client.base_url.netloc.decode()}"
    assert client.get("/models", headers={"Origin": origin}).status_code == 200


def test_a_list_pages_through_everything_once_newest_first(client: httpx.Client) -> None:
    made = [
        client.post("/datasets", content=f'{{"instruction": "{number}", "output": "b"}}'.encode()).json()["id"]
        for number in range(5)
    ]
    seen: list[str] = []
    after: str | None = None
    while True:
        page = client.get("/datasets", params={"limit": 2} | ({"after": after} if after else {})).json()
        assert page["object"] == "list"
        seen += [dataset["id"] for dataset in page["data"]]
        if not page["has_more"]:
            break
        after = seen[-1]
    assert seen[:5] == made[::-1]
    assert len(seen) == len(set(seen))


def test_the_docs_and_the_openapi_document_name_the_same_routes(client: httpx.Client) -> None:
    written = re.findall(
        r"^### `(GET|POST|PUT|PATCH|DELETE) (\S+)`", (REPOSITORY / "docs/api.md").read_text(), re.MULTILINE
    )
    document = client.get("/openapi.json").json()
    served = [(method.upper(), path) for path, item in document["paths"].items() for method in item]
    assert sorted(written) == sorted(served)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation.get("summary"), f"{method} {path} has no summary"


def test_starting_the_api_loads_no_torch() -> None:
    code = (
        "import sys, app.main; app.main.create_app(); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "[]"
