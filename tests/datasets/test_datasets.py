"""The dataset as an object: made, listed, read, deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from app.kit import references
from tests.datasets.helpers import CHAT, ROW, canonical, jsonl, refusal

Upload = Callable[..., httpx.Response]
Stored = Callable[[], set[str]]


def test_upload_answers_with_the_dataset(client: httpx.Client, upload: Upload) -> None:
    content = jsonl([ROW, ROW])
    made = upload(content, name="rows").json()
    assert made | {"id": "", "report": "", "created_at": ""} == {
        "id": "",
        "object": "dataset",
        "name": "rows",
        "kind": "chat",
        "format": "alpaca",
        "container": "jsonl",
        "columns": {},
        "tags": {},
        "on_bad_rows": "reject",
        "rows": 2,
        "dropped_rows": 0,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "report": "",
        "statistics": {
            "turns": 4,
            "characters": 36,
            "repeats": 1,
            "labels": {"Hello": 2},
            "scripts": {"Latin": 0.875, "Han": 0.125},
            "references": 0,
        },
        "problems": [
            {
                "code": "repeated_row",
                "severity": "warning",
                "count": 1,
                "line": 2,
                "path": None,
                "found": None,
                "expected": None,
                "message": "repeats an earlier row",
                "hint": "Remove it, unless it is meant to count twice.",
            }
        ],
        "metadata": {},
        "created_at": "",
    }
    assert made["id"].startswith("ds_")
    assert client.get(f"/datasets/{made['id']}").json() == made


def test_list_is_newest_first_and_paged(client: httpx.Client, upload: Upload) -> None:
    older, newer = upload([ROW]).json(), upload([CHAT]).json()
    first = client.get("/datasets", params={"limit": 1}).json()
    assert first["object"] == "list"
    assert first["data"] == [newer]
    assert first["has_more"] is True
    assert client.get("/datasets", params={"limit": 1, "after": newer["id"]}).json()["data"] == [older]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["ds_0", "%00", "..%2f..", "😀"])
def test_unknown_dataset_is_not_found(client: httpx.Client, method: str, name: str) -> None:
    response = client.request(method, f"/datasets/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] in {"dataset_not_found", "not_found"}


def test_the_same_bytes_under_the_same_options_are_the_same_dataset(client: httpx.Client, upload: Upload) -> None:
    row = ROW | {"output": "twice"}
    first, again = upload([row]), upload([row], name="other", format="alpaca")
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    other = upload([row], kind="prompts", format="alpaca")
    assert other.status_code == 201
    client.delete(f"/datasets/{first.json()['id']}")
    assert upload([row]).status_code == 201


def test_two_uploads_of_the_same_bytes_at_once_are_one_dataset(client: httpx.Client) -> None:
    content = jsonl([ROW | {"output": "at once"}])
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: client.post("/datasets", content=content), range(16)))
    assert sorted(response.status_code for response in made) == [200] * 15 + [201]
    assert len({response.json()["id"] for response in made}) == 1


def test_delete_removes_row_and_blobs(client: httpx.Client, upload: Upload, stored: Stored) -> None:
    before = stored()
    response = upload([ROW | {"output": "only here"}] * 7)
    assert len(stored() - before) == 2  # the file and its problems; canonical rows follow when they are needed
    assert len(canonical(response)) == 7
    assert len(stored() - before) == 3
    made = response.json()
    assert client.delete(f"/datasets/{made['id']}").status_code == 204
    assert stored() == before
    refusal(client.get(f"/datasets/{made['id']}"), 404, "dataset_not_found")
    refusal(client.delete(f"/datasets/{made['id']}"), 404, "dataset_not_found")
    refusal(client.get(f"/reports/{made['report']}"), 404, "report_not_found")


def test_shared_blobs_stay_until_the_last_dataset_goes(client: httpx.Client, upload: Upload, stored: Stored) -> None:
    row = ROW | {"output": "the same rows from other bytes"}
    before = stored()
    one, other = upload([row]), upload(jsonl([row]) + b"\n")
    assert canonical(one) == canonical(other)
    assert len(stored() - before) == 3
    client.delete(f"/datasets/{one.json()['id']}")
    assert len(stored() - before) == 2
    client.delete(f"/datasets/{other.json()['id']}")
    assert stored() == before


def test_rows_are_paged_in_the_file_s_order(client: httpx.Client, upload: Upload) -> None:
    made = upload([{"instruction": f"q{number}", "output": "a"} for number in range(25)]).json()
    first = client.get(f"/datasets/{made['id']}/rows").json()
    rest = client.get(f"/datasets/{made['id']}/rows", params={"after": first["data"][-1]["row"]}).json()
    assert (len(first["data"]), first["has_more"], len(rest["data"]), rest["has_more"]) == (20, True, 5, False)
    rows = first["data"] + rest["data"]
    assert [row["row"] for row in rows] == list(range(25))
    assert [row["messages"][0]["content"] for row in rows] == [f"q{number}" for number in range(25)]
    assert client.get(f"/datasets/{made['id']}/rows", params={"after": 24}).json()["data"] == []
    refusal(client.get("/datasets/ds_0/rows"), 404, "dataset_not_found")


def test_dataset_in_use_is_not_deleted(
    client: httpx.Client, upload: Upload, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upload([ROW]).json()
    before = stored()
    monkeypatch.setitem(references._checks, "dataset", [lambda session, id, project: f"the job job_1 uses {id}"])
    error = refusal(client.delete(f"/datasets/{made['id']}"), 409, "in_use")
    assert "job_1" in error["message"]
    assert stored() == before
    assert client.get(f"/datasets/{made['id']}").status_code == 200


def test_uploads_and_deletions_of_the_same_bytes_at_once_keep_what_is_listed(
    client: httpx.Client, stored: Stored
) -> None:
    before, content = stored(), jsonl([ROW | {"output": "the same bytes at once"}])

    def upload_and_delete(_: int) -> httpx.Response:
        made = client.post("/datasets", content=content).json()
        assert client.delete(f"/datasets/{made['id']}").status_code in (204, 404)
        return client.post("/datasets", content=content)

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(upload_and_delete, range(24)))
    listed = client.get("/datasets", params={"limit": 1000}).json()["data"]
    left = [each for each in kept if each.json()["id"] in {dataset["id"] for dataset in listed}]
    assert len({each.json()["id"] for each in left}) == 1
    assert len(canonical(left[0])) == 1
    client.delete(f"/datasets/{left[0].json()['id']}")
    assert stored() == before
