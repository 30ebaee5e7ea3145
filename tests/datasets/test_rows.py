"""GET /datasets/{id}/rows: the file is converted once, by another process, and each page costs its own rows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.datasets import converting
from app.datasets.canonical import BATCH_ROWS, RowsWriter, read_rows
from app.datasets.turns import Row
from tests.conftest import eventually
from tests.datasets.helpers import helpers, new_row, refusal

Upload = Callable[..., httpx.Response]
ASKED = 4


def test_requests_that_come_together_convert_the_file_once_in_another_process(
    client: httpx.Client, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has read that the rows are not there before any may go on."""
    rows = [new_row() for _ in range(50)]
    id = upload(rows).json()["id"]
    together, conversions = threading.Barrier(ASKED), itertools.count()
    alone, convert = converting.alone, converting.convert

    def meet(dataset_id: str) -> object:
        together.wait(30)
        return alone(dataset_id)

    def counted(*arguments: object) -> str:
        next(conversions)
        return convert(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, ThreadPoolExecutor(ASKED) as pool:
        patch.setattr(converting, "alone", meet)
        patch.setattr(converting, "convert", counted)
        answers = list(pool.map(lambda _: client.get(f"/datasets/{id}/rows").json(), range(ASKED)))
    assert all(answer == answers[0] for answer in answers)
    assert answers[0]["data"][0]["messages"][1]["content"] == rows[0]["output"]
    assert client.get(f"/datasets/{id}/rows", params={"after": 48}).json()["data"][0]["row"] == 49
    assert next(conversions) == 1
    assert helpers("app.datasets.converter")


def test_a_converter_that_dies_is_a_503_and_the_next_request_works(client: httpx.Client, upload: Upload) -> None:
    client.get(f"/datasets/{upload([new_row()]).json()['id']}/rows").raise_for_status()  # one is warm
    for process in helpers("app.datasets.converter"):
        process.suspend()
    id = upload([new_row()]).json()["id"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.get, f"/datasets/{id}/rows")
        eventually(is_converting, 30)
        for process in helpers("app.datasets.converter"):
            process.kill()
        refusal(answer.result(), 503, "converter_unavailable")
    assert client.get(f"/datasets/{id}/rows").status_code == 200


def is_converting() -> bool:
    """Whether any place is taken."""
    helper = converting.CONVERTERS.take(0, leaving=converting.CONVERTERS.places - 1)
    if helper is not None:
        converting.CONVERTERS.give_back(helper)
    return helper is None


@pytest.mark.parametrize("start", [0, 1, 999, 1000, BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 1500, BATCH_ROWS + 2000])
def test_rows_are_read_from_any_place(tmp_path: Path, start: int) -> None:
    with (tmp_path / "rows").open("wb") as file, RowsWriter(file, "text") as writer:
        for number in range(BATCH_ROWS + 2000):
            writer.append(Row(text=str(number)), 1)
    found = [int(row["text"]) for row in itertools.islice(read_rows(tmp_path / "rows", start), 2500)]
    assert found == list(range(start, BATCH_ROWS + 2000))[:2500]
