"""Jobs need a dataset; the base is the one that the project ships."""

from __future__ import annotations

import json

import httpx
import pytest

ROWS = b"\n".join(json.dumps({"instruction": f"question {n}", "output": f"answer {n}"}).encode() for n in range(20))


@pytest.fixture
def dataset(client: httpx.Client) -> str:
    """Id of a dataset of twenty rows."""
    answer = client.post("/datasets", params={"name": "rows"}, content=ROWS)
    assert answer.status_code in (200, 201), answer.text
    return str(answer.json()["id"])
