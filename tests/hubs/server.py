"""A hub on loopback: Hugging Face's API and ModelScope's, as far as their libraries call them to fetch a model or a
dataset."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = hashlib.sha1(b"the newest commit").hexdigest()
OLDER_COMMIT = hashlib.sha1(b"an older commit").hexdigest()
REPOSITORY, GATED, PICKLED = "acme/base", "acme/gated", "acme/pickled"
# Opens what is gated.
TOKEN = "hf_abcdefghijklmnop"
REVISIONS = ("main", "master", "v1", COMMIT)


class Hub:
    """What the hub holds, and what it was asked: `files` are the model's, `datasets` the files of each dataset.

    `cut` and `held` say what happens in the middle of a file. The next answer with a file of `cut` ends there with its
    connection; one with a file of `held` goes on only once `release` is set.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.fetched: list[tuple[str, str | None]] = []  # file and `Range` of every GET, in order
        self.served: set[str] = set()  # files that were sent to their end
        self.cut: set[str] = set()
        self.held: set[str] = set()
        self.release = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()

    def ranges(self, name: str) -> list[str | None]:
        """The `Range` of every GET of the file."""
        return [asked for file, asked in self.fetched if file == name]

    def files_of(self, repository: str) -> dict[str, bytes] | None:
        """None where there is no such repository."""
        pickled = {name: data for name, data in self.files.items() if not name.endswith(".safetensors")}
        models = {REPOSITORY: self.files, GATED: self.files, PICKLED: pickled}
        return (models | self.datasets).get(repository)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), {key: values[0] for key, values in parse_qs(url.query).items()}
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                answer(self, query, *match.groups())
                return
        self.reply(404, {"error": f"no route {path}"})

    # Hugging Face

    def hf_model(self, _query: dict[str, str], repository: str, revision: str | None) -> None:
        if self.hf_knows(repository, revision or "main"):
            files = self.hub.files_of(repository) or {}
            siblings = [{"rfilename": name, "size": len(data), "blobId": _id(data)} for name, data in files.items()]
            self.reply(200, {"id": repository, "sha": COMMIT, "siblings": siblings})

    def hf_tree(self, _query: dict[str, str], repository: str, revision: str) -> None:
        if self.hf_knows(repository, revision):
            files = self.hub.files_of(repository) or {}
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _id(data)} for name, data in files.items()
            ]
            self.reply(200, entries)

    def hf_file(self, _query: dict[str, str], repository: str, revision: str, name: str) -> None:
        if not self.may_read(repository):
            self.reply(403, {"error": "Access is restricted"}, {"X-Error-Code": "GatedRepo"})
        elif self.hf_knows(repository, revision):
            self.send_file(repository, name, {"X-Repo-Commit": COMMIT})

    def hf_knows(self, repository: str, revision: str) -> bool:
        """Whether both exist; answers as the hub does where they do not (401: who asks must not learn what is private)."""
        if self.hub.files_of(repository) is None:
            self.reply(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        elif revision not in REVISIONS:
            self.reply(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        else:
            return True
        return False

    # ModelScope

    def ms_region(self, _query: dict[str, str]) -> None:
        self.reply(200, {"Code": 200, "Data": {"InternalRegionQueryAddress": ""}})

    def ms_files(self, query: dict[str, str], repository: str) -> None:
        if not self.ms_knows(repository, query["Revision"]):
            return
        files = [
            {
                "Path": name, "Name": name.rsplit("/", 1)[-1], "Type": "blob", "Size": len(data),
                "Sha256": hashlib.sha256(data).hexdigest(), "CommittedDate": 1_700_000_000 + (name == "config.json"),
                "Revision": COMMIT if name == "config.json" else OLDER_COMMIT,
            }
            for name, data in (self.hub.files_of(repository) or {}).items()
        ]  # fmt: skip
        self.reply(200, {"Code": 200, "Data": {"Files": files}, "Success": True})

    def ms_file(self, query: dict[str, str], repository: str) -> None:
        if self.ms_knows(repository, query["Revision"]):
            self.send_file(repository, query["FilePath"], {})

    def ms_knows(self, repository: str, revision: str) -> bool:
        """Whether both exist and may be read; answers where not."""
        if self.hub.files_of(repository) is None or revision not in REVISIONS:
            self.reply(404, {"Code": 10010205001, "Message": "record not found", "Success": False})
        elif not self.may_read(repository):
            self.reply(403, {"Code": 10010205003, "Message": "no permission", "Success": False})
        else:
            return True
        return False

    # Both

    def may_read(self, repository: str) -> bool:
        return repository != GATED or TOKEN in (self.headers.get("Authorization", "") + self.headers.get("Cookie", ""))

    def send_file(self, repository: str, name: str, headers: dict[str, str]) -> None:
        """The file, or the part from where `Range` says; with what `cut` and `held` ask for in its middle."""
        data, asked = (self.hub.files_of(repository) or {})[name], self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for key, value in {"ETag": f'"{_id(data)}"', "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.hub.fetched.append((name, asked))
        middle = (start + len(data)) // 2
        try:
            self.wfile.write(data[start:middle])
            if name in self.hub.held:
                self.hub.release.wait(60)
            if name in self.hub.cut:
                self.hub.cut.discard(name)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.wfile.write(data[middle:])
            self.hub.served.add(name)
        except OSError:  # the other end was killed
            self.close_connection = True

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


ROUTES = (
    (r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/(.+))?", _Handler.hf_model),
    (r"/api/(?:models|datasets)/([^/]+/[^/]+)/tree/([^/]+)", _Handler.hf_tree),
    (r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", _Handler.hf_file),
    (r"/api/v1/repos/internalAccelerationInfo", _Handler.ms_region),
    (r"/api/v1/models/([^/]+/[^/]+)/repo/files", _Handler.ms_files),
    (r"/api/v1/datasets/([^/]+/[^/]+)/repo/tree", _Handler.ms_files),
    (r"/api/v1/(?:models|datasets)/([^/]+/[^/]+)/repo", _Handler.ms_file),
)


def _id(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
