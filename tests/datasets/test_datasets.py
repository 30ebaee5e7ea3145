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
    assert made | {"id": "", "created_at": ""} == {
        "id": "",
        "object": "dataset",
        "name": "rows",
        "kind": "chat",
        "format": "alpaca",
        "rows": 2,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
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


def test_delete_removes_row_and_blobs(client: httpx.Client, upload: Upload, stored: Stored) -> None:
    before = stored()
    made = upload([ROW | {"output": "only here"}]).json()
    assert len(stored() - before) == 2
    assert client.delete(f"/datasets/{made['id']}").status_code == 204
    assert stored() == before
    refusal(client.get(f"/datasets/{made['id']}"), 404, "dataset_not_found")
    refusal(client.delete(f"/datasets/{made['id']}"), 404, "dataset_not_found")


def test_shared_blobs_stay_until_the_last_dataset_goes(client: httpx.Client, upload: Upload, stored: Stored) -> None:
    before = stored()
    row = ROW | {"output": "shared by two"}
    one, other = upload([row]).json(), upload([row]).json()
    assert one["id"] != other["id"]
    client.delete(f"/datasets/{one['id']}")
    assert len(stored() - before) == 2
    client.delete(f"/datasets/{other['id']}")
    assert stored() == before


def test_rows_blob_shared_by_different_files_stays(client: httpx.Client, upload: Upload, stored: Stored) -> None:
    row = ROW | {"output": "the same rows from other bytes"}
    before = stored()
    one, other = upload([row]).json(), upload(jsonl([row]) + b"\n").json()
    assert len(stored() - before) == 3
    client.delete(f"/datasets/{one['id']}")
    assert len(stored() - before) == 2
    client.delete(f"/datasets/{other['id']}")
    assert stored() == before


def test_dataset_in_use_is_not_deleted(
    client: httpx.Client, upload: Upload, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = upload([ROW]).json()
    before = stored()
    monkeypatch.setitem(references._checks, "dataset", [lambda session, id: f"the job job_1 uses {id}"])
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
        assert client.delete(f"/datasets/{made['id']}").status_code == 204
        return client.post("/datasets", content=content)

    with ThreadPoolExecutor(8) as pool:
        kept = list(pool.map(upload_and_delete, range(24)))
    assert all(len(canonical(response)) == 1 for response in kept)
    for response in kept:
        client.delete(f"/datasets/{response.json()['id']}")
    assert stored() == before
