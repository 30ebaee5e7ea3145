"""Uploads are checked while they arrive, by processes of their own."""

from __future__ import annotations

import gzip
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest

from app.datasets.examination import EXAMINERS
from tests.conftest import eventually
from tests.datasets.helpers import helpers, jsonl, new_row, refusal

EXAMINER = "app.datasets.examiner"
# More than is received before the check begins.
BAD = jsonl([{"instruction": number, "output": "x" * 1000} for number in range(2500)])


@pytest.fixture
def received(service: str) -> Callable[[], list[Path]]:
    """What lies in the folders of uploads that are arriving."""
    from app.settings import get_settings

    incoming = get_settings().home / "blobs" / "incoming"
    # Not by glob, which stumbles over a folder that goes meanwhile.
    return lambda: [Path(folder) / name for folder, _, names in os.walk(incoming) for name in names]


class Slow:
    """A body that stops after its first bytes until it is let go."""

    def __init__(self, first: bytes, last: bytes = b"") -> None:
        self.first, self.last, self.go = first, last, threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield self.first
        self.go.wait(60)
        yield self.last


@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, 0)], ids=["plain", "gzip"])
def test_rows_are_checked_before_the_last_has_arrived(
    client: httpx.Client, received: Callable[[], list[Path]], pack: Callable[[bytes], bytes]
) -> None:
    content = pack(BAD + jsonl([new_row()]))
    body = Slow(content[:-50], content[-50:])
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, "/datasets", content=body, params={"on_bad_rows": "drop"})
        found = eventually(lambda: [path for path in received() if path.name == "problems" and path.stat().st_size], 30)
        body.go.set()
    assert found
    made = answer.result().json()
    assert (made["rows"], made["dropped_rows"]) == (1, 2500)
    assert not received()


@pytest.mark.parametrize("first", ["file", "on_bad_rows"])
def test_a_field_counts_wherever_it_stands_in_the_form(client: httpx.Client, first: str) -> None:
    content = BAD + jsonl([new_row()])
    parts = {"file": ("rows.jsonl", content), "on_bad_rows": (None, b"drop")}
    made = client.post("/datasets", files={name: parts[name] for name in (first, *(parts.keys() - {first}))})
    assert made.status_code == 201, made.text
    assert (made.json()["rows"], made.json()["dropped_rows"]) == (1, 2500)


def test_a_wrong_field_is_named_after_a_long_file(client: httpx.Client) -> None:
    assert refusal(client.post("/datasets", content=BAD, params={"kind": "x"}), 422, "invalid_value")["param"] == "kind"


def test_the_death_of_the_process_is_an_error_and_loses_nothing_else(
    client: httpx.Client, received: Callable[[], list[Path]], stored: Callable[[], set[str]]
) -> None:
    before, body = stored(), Slow(BAD, BAD)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, "/datasets", content=body)
        eventually(lambda: any(path.name == "problems" for path in received()), 30)
        for process in helpers(EXAMINER):
            os.kill(process.pid, signal.SIGKILL)
        psutil.wait_procs(helpers(EXAMINER), 10)
        body.go.set()
    refusal(answer.result(), 503, "examiner_unavailable")
    assert answer.result().headers["Retry-After"]
    assert stored() == before
    assert client.post("/datasets", content=jsonl([new_row()])).status_code == 201


def test_uploads_that_trickle_in_hold_up_no_other(service: str, received: Callable[[], list[Path]]) -> None:
    slow = [Slow(BAD + jsonl([new_row()])) for _ in range(EXAMINERS.places + 2)]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(slow)))
        for body in slow:
            stack.callback(body.go.set)
            client = stack.enter_context(httpx.Client(base_url=service, timeout=60))
            pool.submit(client.post, "/datasets", content=body)
        eventually(
            lambda: sum(path.name == "file" and path.stat().st_size > 2**20 for path in received()) == len(slow), 60
        )
        assert httpx.post(f"{service}/datasets", content=jsonl([new_row()]), timeout=60).status_code == 201
    eventually(lambda: not received(), 60)
    assert len(helpers(EXAMINER)) <= 2


def test_an_upload_that_is_cut_off_ends_its_check(client: httpx.Client, stored: Callable[[], set[str]]) -> None:
    before = stored()

    def body() -> Iterator[bytes]:
        yield BAD
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        client.post("/datasets", content=body())
    eventually(lambda: stored() == before, 30)
    content = json.dumps(new_row()).encode()
    assert client.post("/datasets", content=content).status_code == 201
