"""Behind nginx as `deploy/nginx.conf` sets it up: TLS, uploads, streams, the proxy's own pages, and who the client is."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from app.projects import service as projects
from app.up import migrate, server_options
from tests.conftest import REPOSITORY, eventually, settings_of, unavailable
from tests.datasets.helpers import jsonl, new_row, refusal

NAME = "burnish.example.org"
ORIGIN = f"https://{NAME}"
# nginx is reached from one address of this machine, and reaches the service from another.
CLIENT, PROXY = "127.0.0.2", "127.0.0.1"
FORGED = {"X-Forwarded-For": "203.0.113.9"}


@contextmanager
def api(environment: dict[str, str]) -> Iterator[int]:
    """The port of the API, served as `burnish api` does with these settings. A key of an admin is `environment`'s."""
    with settings_of(environment):
        migrate()
        listening = socket.create_server(("127.0.0.1", 0))
        options = server_options() | {"log_level": "warning", "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config("app.main:create_app", factory=True, **options))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        eventually(lambda: server.started or not thread.is_alive(), 60)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)


@dataclass(frozen=True)
class Site:
    """A service behind nginx."""

    url: str
    direct: str
    certificate: Path
    key: str

    def client(self, **headers: str) -> httpx.Client:
        """A client from another address than the proxy's, that calls the site by its name."""
        verify = ssl.create_default_context(cafile=str(self.certificate))
        transport = httpx.HTTPTransport(verify=verify, local_address=CLIENT)
        client = httpx.Client(base_url=self.url, transport=transport, timeout=60)
        client.event_hooks["request"] = [lambda request: request.extensions.update(sni_hostname=NAME)]
        client.headers = httpx.Headers({"Host": NAME, "Authorization": f"Bearer {self.key}"} | headers)
        return client


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None or shutil.which("openssl") is None:
        unavailable("needs nginx and openssl: tests/install-packages.sh installs them")
    folder = tmp_path_factory.mktemp("nginx")
    environment = {
        "BURNISH_HOME": str(folder / "home"),
        "BURNISH_PUBLIC_URL": ORIGIN,
        "BURNISH_TRUSTED_PROXIES": f"{PROXY}/32",
    }
    certificate, private = folder / "fullchain.pem", folder / "privkey.pem"
    make = f"openssl req -x509 -newkey ed25519 -noenc -days 1 -subj /CN={NAME} -addext subjectAltName=DNS:{NAME}"
    subprocess.run([*make.split(), "-keyout", private, "-out", certificate], check=True, capture_output=True)
    with api(environment) as port, socket.create_server(("127.0.0.1", 0)) as free:
        key = projects.create_key("default", "admin", "first", None)[1]
        listen = free.getsockname()[1]
        free.close()
        text = (REPOSITORY / "deploy/nginx.conf").read_text()
        for written, here in {
            "listen 443 ssl": f"listen 127.0.0.1:{listen} ssl",
            "server 127.0.0.1:8000": f"server 127.0.0.1:{port}",
            "/etc/ssl/burnish/fullchain.pem": str(certificate),
            "/etc/ssl/burnish/privkey.pem": str(private),
        }.items():
            assert text.count(written) == 1, written
            text = text.replace(written, here)
        (folder / "burnish.conf").write_text(text)
        temporary = "".join(
            f"{each}_temp_path {folder / each};\n" for each in ("client_body", "proxy", "fastcgi", "scgi", "uwsgi")
        )
        (folder / "nginx.conf").write_text(
            f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}include {folder}/burnish.conf;\n}}\n"
        )
        with (folder / "log").open("w") as log:
            nginx = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"], stderr=log)
        site = Site(f"https://127.0.0.1:{listen}", f"http://127.0.0.1:{port}", certificate, key)
        try:
            eventually(lambda: _answers(site) or nginx.poll() is not None, 30)
            assert nginx.poll() is None, (folder / "log").read_text()
            yield site
        finally:
            nginx.terminate()
            nginx.wait(20)


def _answers(site: Site) -> bool:
    try:
        with site.client() as client:
            return client.get("/health").is_success
    except httpx.TransportError:
        return False


def address_of_a_change(client: httpx.Client, **headers: str) -> str:
    """Where the audit log says that a change came from."""
    changed = client.put("/secrets/token", json={"value": "x"}, headers=headers).raise_for_status().json()["id"]
    entries = client.get("/audit", params={"target": changed, "limit": 1}).json()["data"]
    return str(entries[0]["address"])


def test_the_address_is_the_client_s_and_cannot_be_forged(site: Site) -> None:
    with site.client() as client:
        assert address_of_a_change(client) == CLIENT
        assert address_of_a_change(client, **FORGED) == CLIENT


def test_an_address_that_is_no_trusted_proxy_s_is_not_believed(site: Site) -> None:
    transport, headers = httpx.HTTPTransport(local_address=CLIENT), {"Authorization": f"Bearer {site.key}"}
    with httpx.Client(base_url=site.direct, transport=transport, headers=headers, timeout=60) as client:
        assert address_of_a_change(client, **FORGED) == CLIENT


def test_without_trusted_proxies_nobody_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable
    with (
        api({"BURNISH_HOME": str(tmp_path)}) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        assert address_of_a_change(client, **FORGED) == "127.0.0.1"


def test_the_site_s_own_pages_may_call_it_and_no_others(site: Site) -> None:
    with site.client() as client:
        assert client.get("/jobs", headers={"Origin": ORIGIN}).status_code == 200
        for strange in ("https://evil.example", f"http://{NAME}", f"{ORIGIN}:8443", "null", "http://127.0.0.1:8000"):
            assert (
                refusal(client.get("/jobs", headers={"Origin": strange}), 403, "forbidden_origin")["param"] == "Origin"
            )
        assert (
            refusal(client.get("/jobs", headers={"Host": "evil.example"}), 403, "forbidden_origin")["param"] == "Host"
        )
    with httpx.Client(base_url=site.direct, headers={"Authorization": f"Bearer {site.key}"}, timeout=60) as client:
        for own in (site.direct, ORIGIN):
            assert client.get("/jobs", headers={"Origin": own}).status_code == 200


def test_it_serves_nobody_without_a_key(site: Site) -> None:
    with site.client(Authorization="") as client:
        refusal(client.get("/jobs"), 401, "invalid_key")


def test_a_redirect_stays_on_the_site(site: Site) -> None:
    with site.client() as client:
        answer = client.get("/jobs/")
        assert (answer.status_code, answer.headers["location"]) == (307, f"{ORIGIN}/jobs")


def test_an_upload_is_larger_than_nginx_allows_by_itself(site: Site) -> None:
    content = jsonl([new_row() | {"input": "x" * 1000} for _ in range(1100)])
    assert len(content) > 2**20
    with site.client() as client:
        assert client.post("/datasets", content=content).raise_for_status().json()["rows"] == 1100


def test_events_come_while_the_job_goes_on(site: Site) -> None:
    with site.client() as client:
        dataset = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()["id"]
        body = {"base_model": "demo-base", "dataset": dataset}
        job = client.post("/jobs", json=body).raise_for_status().json()["id"]
        with client.stream("GET", f"/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as answer:
            lines = answer.iter_lines()
            assert next(line for line in lines if line.startswith("event:")) == "event: created"
            client.post(f"/jobs/{job}/cancel").raise_for_status()
            assert "event: cancelled" in list(lines)


def test_below_a_path_links_lead_back_and_uploads_are_not_bounded_as_bodies(tmp_path: Path) -> None:
    environment = {
        "BURNISH_HOME": str(tmp_path),
        "BURNISH_PUBLIC_URL": "http://127.0.0.1/tuning/",
        "BURNISH_MAX_REQUEST_BYTES": "2000",
    }
    with api(environment) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/tuning"}]
        page = client.get("/docs").raise_for_status().text
        assert "'/tuning/openapi.json'" in page
        assert client.get("/jobs/").headers["location"].endswith("/tuning/jobs")
        assert client.post("/datasets", content=jsonl([new_row() | {"input": "x" * 3000}])).status_code == 201
        refusal(client.post("/jobs", content=b" " * 3000), 413, "too_large")
