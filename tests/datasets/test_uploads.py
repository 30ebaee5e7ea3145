"""The upload itself: forms and raw bodies, limits, cut-off connections, any bytes at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.datasets.checks import CHECKS
from app.datasets.formats import FORMATS
from tests.conftest import eventually
from tests.datasets.helpers import CHAT, ROW, canonical, expire, first_problem, helpers, jsonl, new_row, refusal

Upload = Callable[..., httpx.Response]
Stored = Callable[[], set[str]]

BOUNDARY = "burnish-boundary"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    label = f'; filename="{filename}"' if filename is not None else ""
    return f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{label}\r\n\r\n'.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = part("file", jsonl([ROW]), "rows.jsonl")


def test_form_takes_its_parts_in_any_order(client: httpx.Client) -> None:
    name, format = part("name", "名字".encode()), part("format", b"alpaca")
    for body in (FILE + name + format, name + format + FILE, name + FILE + format):
        response = client.post("/datasets", content=body + END, headers=FORM)
        assert response.status_code in (200, 201), response.text
        assert response.json()["name"] == "名字"
        assert response.json()["bytes"] == len(jsonl([ROW]))


def test_form_of_an_ordinary_client(client: httpx.Client) -> None:
    response = client.post("/datasets", files={"file": ("rows.jsonl", jsonl([CHAT]))}, data={"name": "n"})
    assert (response.json()["name"], response.json()["format"]) == ("n", "openai")


@pytest.mark.parametrize(
    ("filename", "name"),
    [
        ("rows.jsonl", "rows.jsonl"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\评论.json", "评论.json"),
        ("/", "dataset"),
        (None, "dataset"),
        ("x" * 1000, "x" * 200),
        ("a\tb\x00c", "abc"),
    ],
)
def test_filename_is_a_label(client: httpx.Client, filename: str | None, name: str) -> None:
    response = client.post("/datasets", content=part("file", jsonl([new_row()]), filename) + END, headers=FORM)
    assert response.json()["name"] == name


def test_raw_body_of_any_other_content_type(client: httpx.Client) -> None:
    for kind in ("application/jsonl", "application/json", "application/x-www-form-urlencoded", "text/plain"):
        response = client.post("/datasets?name=raw", content=jsonl([new_row()]), headers={"Content-Type": kind})
        assert response.json()["name"] == "raw"
    assert client.post("/datasets", content=jsonl([new_row()])).json()["name"] == "dataset"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        (part("name", b"x") + END, "missing_field", "file"),
        (END, "missing_field", "file"),
        (FILE + FILE + END, "invalid_value", "file"),
        (part("nmae", b"x") + FILE + END, "unknown_field", "nmae"),
        (FILE + part("name", b"x") + part("name", b"y") + END, "duplicate_key", "name"),
        (FILE + part("name", b"\xff") + END, "invalid_value", "name"),
        (FILE + part("name", b"") + END, "invalid_value", "name"),
        (FILE + part("name", b"a\x00b") + END, "invalid_value", "name"),
        (FILE + part("name", b"x" * 201) + END, "invalid_value", "name"),
        (FILE + part("name", b"x" * 70_000) + END, "invalid_value", "name"),
        (FILE + part("format", b"parquet") + END, "invalid_value", "format"),
    ],
)
def test_wrong_form_is_refused(client: httpx.Client, stored: Stored, body: bytes, code: str, param: str) -> None:
    before = stored()
    error = refusal(client.post("/datasets", content=body, headers=FORM), 422, code)
    assert error["param"] == param
    assert stored() == before


@pytest.mark.parametrize(
    ("query", "code", "param"),
    [
        ("nmae=x", "unknown_field", "nmae"),
        ("name=a&name=b", "duplicate_key", "name"),
        ("name=", "invalid_value", "name"),
        ("name=%00", "invalid_value", "name"),
        ("format=csv", "invalid_value", "format"),
    ],
)
def test_wrong_query_is_refused(client: httpx.Client, query: str, code: str, param: str) -> None:
    error = refusal(client.post(f"/datasets?{query}", content=jsonl([ROW])), 422, code)
    assert error["param"] == param


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("multipart/form-data", FILE + END, "invalid_upload"),
        ("multipart/form-data; boundary=" + "x" * 500, FILE + END, "invalid_upload"),
        (FORM["Content-Type"], b"--other\r\n", "invalid_upload"),
        (FORM["Content-Type"], f"--{BOUNDARY}\r\nX: y\r\n\r\nx\r\n".encode() + END, "invalid_upload"),
        (FORM["Content-Type"], FILE, "upload_incomplete"),
        (FORM["Content-Type"], FILE[:-20], "upload_incomplete"),
        (FORM["Content-Type"], b"", "upload_incomplete"),
    ],
)
def test_broken_form_is_refused(
    client: httpx.Client, stored: Stored, content_type: str, body: bytes, code: str
) -> None:
    before = stored()
    refusal(client.post("/datasets", content=body, headers={"Content-Type": content_type}), 400, code)
    assert stored() == before


def test_empty_body_is_an_empty_file(client: httpx.Client) -> None:
    assert first_problem(client.post("/datasets"))[2] == "has no rows"


@pytest.fixture
def small_limit(service: str, monkeypatch: pytest.MonkeyPatch) -> int:
    from app.settings import get_settings

    monkeypatch.setattr(get_settings(), "max_upload_bytes", 2 * 2**20)
    return 2 * 2**20


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(0, size, 2**16):
        yield b" " * 2**16


def test_file_over_the_limit_is_refused(client: httpx.Client, stored: Stored, small_limit: int) -> None:
    before = stored()
    streamed = client.post("/datasets", content=chunks(small_limit + 2**16))
    refusal(streamed, 413, "too_large")
    form = client.post("/datasets", content=part("file", b" " * (small_limit + 1)) + END, headers=FORM)
    refusal(form, 413, "too_large")
    assert stored() == before


def test_file_at_the_limit_is_taken(client: httpx.Client, small_limit: int) -> None:
    content = jsonl([ROW]).ljust(small_limit)
    assert client.post("/datasets", content=content).status_code == 201
    assert client.post("/datasets", content=part("file", content) + END, headers=FORM).status_code == 200


def connect(client: httpx.Client) -> socket.socket:
    address = urlsplit(str(client.base_url))
    return socket.create_connection((address.hostname, address.port), timeout=20)


def test_announced_size_over_the_limit_is_refused_before_it_is_sent(client: httpx.Client, small_limit: int) -> None:
    with connect(client) as connection:
        connection.sendall(b"POST /datasets HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 50000000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n2000000\r\n",
        b"Content-Type: multipart/form-data; boundary=burnish-boundary\r\nContent-Length: 50000000\r\n\r\n"
        + FILE[:100],
    ],
)
def test_cut_off_upload_leaves_nothing(client: httpx.Client, stored: Stored, head: bytes) -> None:
    before, known = stored(), client.get("/datasets").json()
    with connect(client) as connection:
        connection.sendall(b"POST /datasets HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head)
        for _ in range(2000):
            connection.sendall(jsonl([ROW]) * 100)
        eventually(lambda: stored() != before, 10, "the upload is being received")
    eventually(lambda: stored() == before, 10, "nothing is left")
    assert client.get("/datasets").json() == known


@pytest.fixture
def nothing_there(client: httpx.Client) -> None:
    for dataset in client.get("/datasets", params={"limit": 1000}).json()["data"]:
        client.delete(f"/datasets/{dataset['id']}")


any_body = st.binary(max_size=300) | st.lists(
    st.sampled_from(
        [json.dumps(ROW).encode(), json.dumps(CHAT).encode(), b'{"messages":', b"[", b"]", b",", b"\n", b'"', b"{}", b"\xff",
         b"null", b"\xef\xbb\xbf", b'{"messages":[{}]}', b'{"instruction":1}', b'{"text":"a"}',
          b'{"prompt":"a","chosen":"b","rejected":"c"}',
         b'{"conversations":[{"from":"human","value":"a"}],"label":true}', b"instruction,output\na,b\n", gzip.compress(b"{}"),
         FILE, END, b"--" + BOUNDARY.encode()]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


any_options = st.fixed_dictionaries(
    {},
    optional={
        "format": st.sampled_from(["auto", *FORMATS]),
        "kind": st.sampled_from(["auto", *CHECKS]),
        "on_bad_rows": st.sampled_from(["reject", "drop"]),
        "name": st.sampled_from(["rows.csv", "rows.tsv", "rows.txt", "rows.json"]),
        "columns": st.sampled_from(['{"prompt": "text"}', '{"prompt": "instruction", "response": "input"}', "{}"]),
    },
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=any_body, form=st.booleans(), options=any_options)
@example(body=FILE + END, form=True, options={})
@example(body=json.dumps([ROW]).encode(), form=False, options={})
def test_any_bytes_are_stored_whole_or_refused(
    client: httpx.Client, nothing_there: None, stored: Stored, body: bytes, form: bool, options: dict[str, str]
) -> None:
    before = stored()
    response = client.post("/datasets", params=options, content=body, headers=FORM if form else {})
    if response.status_code == 201:
        assert len(canonical(response)) == response.json()["rows"] > 0
        client.delete(f"/datasets/{response.json()['id']}")
    else:
        error = refusal(response, response.status_code, response.json()["error"]["code"])
        assert response.status_code in {400, 422}
        assert (error["code"] == "bad_rows") == bool(error.get("problems"))
        if error["code"] == "bad_rows":
            lines = client.get(f"/reports/{error['report']}/rows").text.splitlines()
            assert len(lines) == sum(problem["count"] for problem in error["problems"])
            expire(error["report"])
    assert stored() == before


@pytest.mark.parametrize("array", [False, True])
def test_memory_does_not_grow_with_the_file(client: httpx.Client, array: bool) -> None:
    row = json.dumps(ROW | {"input": "你好 world " * 40}, ensure_ascii=False).encode()
    block = (row + (b",\n" if array else b"\n")) * 2000

    def body() -> Iterator[bytes]:
        yield b"[" if array else b""
        for _ in range(150 * 2**20 // len(block)):
            yield block
        yield row + (b"]" if array else b"")

    warm = client.post("/datasets", content=b"[" + block[:-2] + b"]" if array else block)
    processes, peak, done = [psutil.Process(), *helpers("app.datasets.examiner")], 0, threading.Event()

    def memory() -> int:
        return sum(process.memory_info().rss for process in processes)

    idle = memory()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, memory())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    made = client.post("/datasets", content=body())
    done.set()
    watcher.join()
    assert made.status_code == 201, made.text
    for dataset in (warm, made):
        client.delete(f"/datasets/{dataset.json()['id']}")
    assert peak - idle < 100 * 2**20


def parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def table(rows: list[dict[str, str]], separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("form", [False, True])
@pytest.mark.parametrize("container", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_every_container_comes_in_both_ways(
    client: httpx.Client, container: str, form: bool, compress: Callable[[bytes], bytes]
) -> None:
    rows = [new_row() | {"instruction": f"line\n{number}"} for number in range(300)]
    written = {
        "json": lambda: json.dumps(rows).encode(),
        "jsonl": lambda: jsonl(rows),
        "csv": lambda: table(rows, ","),
        "tsv": lambda: table(rows, "\t"),
        "parquet": lambda: parquet(rows),
    }
    content, name = compress(written[container]()), f"rows.{container}"
    if form:
        response = client.post("/datasets", files={"file": (name, content)})
    else:
        response = client.post("/datasets", params={"name": name}, content=content)
    assert response.json()["container"] == container, response.text
    read = [row["messages"][0]["content"] for row in canonical(response)]
    assert read == [f"{row['instruction']}\n{row['input']}" for row in rows]
