"""At least once, whatever dies; to nobody who must not be reached; and no receiver holds up another."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.kit.database import reading, utc_now
from app.kit.leases import LeaseLost
from app.settings import get_settings
from app.webhooks.tables import Delivery
from tests.conftest import REPOSITORY, Backend, eventually
from tests.datasets.helpers import refusal
from tests.webhooks.conftest import Add, Receiver, deliver_all, deliveries, pass_time
from worker import outbound
from worker import webhooks as sender


def tell(client: httpx.Client, webhook: dict[str, Any]) -> dict[str, Any]:
    """A test event for the webhook: its delivery."""
    return dict(client.post(f"/webhooks/{webhook['id']}/test").raise_for_status().json())


def ids(receiver: Receiver) -> list[str]:
    return [message.headers["webhook-id"] for message in receiver.got]


def test_it_is_tried_again_with_the_same_id_until_it_is_there(
    client: httpx.Client, receiver: Receiver, add: Add
) -> None:
    webhook, receiver.statuses = add(receiver.url), [500, 302, 429]
    event = tell(client, webhook)["event"]
    for number, status in enumerate((500, 302, 429)):
        deliver_all()  # once: the next try is later
        (delivery,) = deliveries(client, webhook, status="pending")
        assert (delivery["attempts"], delivery["response_status"]) == (number + 1, status)
        assert str(status) in delivery["error"]
        pause = datetime.fromisoformat(delivery["next_attempt_at"]) - utc_now()
        assert timedelta(seconds=sender.PAUSES[number] * 1.3) > pause > timedelta(seconds=sender.PAUSES[number] * 0.4)
        pass_time()
    deliver_all()
    assert ids(receiver) == [event] * 4
    assert len({message.body for message in receiver.got}) == 1
    (delivery,) = deliveries(client, webhook, status="delivered")
    assert (delivery["attempts"], delivery["error"]) == (4, None)


def test_a_receiver_that_was_dead_gets_it_when_it_is_back(client: httpx.Client, add: Add) -> None:
    with Receiver() as gone:
        port = gone.port
    webhook = add(gone.url)
    event = tell(client, webhook)["event"]
    deliver_all()
    (delivery,) = deliveries(client, webhook)
    assert (delivery["status"], delivery["response_status"]) == ("pending", None)
    assert "refused" in delivery["error"]
    with Receiver(port=port) as back:
        pass_time()
        deliver_all()
        assert ids(back) == [event]


def test_it_fails_after_its_last_try_and_can_be_sent_again(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    webhook, receiver.statuses = add(receiver.url), [503] * (len(sender.PAUSES) + 1)
    made = tell(client, webhook)
    for _ in receiver.statuses[:]:
        pass_time()
        deliver_all()
    (delivery,) = deliveries(client, webhook, status="failed")
    assert (delivery["attempts"], delivery["next_attempt_at"]) == (len(sender.PAUSES) + 1, None)
    pass_time()
    deliver_all()
    assert len(receiver.got) == len(sender.PAUSES) + 1
    receiver.statuses = [503]
    path = f"/webhooks/{webhook['id']}/deliveries/{made['id']}/resend"
    assert client.post(path).json()["status"] == "pending"
    deliver_all()
    assert deliveries(client, webhook)[0]["status"] == "pending"  # it has all its tries anew
    client.post(path).raise_for_status()  # does not wait for its time
    deliver_all()
    assert deliveries(client, webhook)[0]["status"] == "delivered"
    assert set(ids(receiver)) == {made["event"]}
    refusal(client.post(f"/webhooks/{webhook['id']}/deliveries/none/resend"), 404, "delivery_not_found")


def test_a_sender_that_is_killed_before_it_could_write_sends_again(
    client: httpx.Client, receiver: Receiver, add: Add, backend: Backend
) -> None:
    event = tell(client, add(receiver.url))["event"]
    home = {"BURNISH_WEBHOOK_NETWORKS": "127.0.0.0/8"}
    child = subprocess.Popen(
        [sys.executable, "-c", "import app.tables; from worker.webhooks import deliver_next; deliver_next()"],
        cwd=REPOSITORY,
        env=os.environ | backend.environment | home,
    )
    receiver.before = lambda: os.kill(child.pid, signal.SIGKILL)  # it was sent, and the answer is never read
    assert child.wait(60) == -signal.SIGKILL
    receiver.before = lambda: None
    deliver_all()
    assert ids(receiver) == [event]  # the lease is the dead one's still
    pass_time()
    deliver_all()
    assert ids(receiver) == [event, event]


def test_a_sender_that_comes_too_late_writes_nothing(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    webhook = add(receiver.url)
    tell(client, webhook)

    def overtake() -> None:
        receiver.before = lambda: None
        pass_time()
        deliver_all()

    receiver.before, receiver.statuses = overtake, [200, 500]
    deliver_all()
    (delivery,) = deliveries(client, webhook)
    assert (delivery["status"], delivery["attempts"], delivery["error"]) == ("delivered", 2, None)
    with reading() as session, pytest.raises(LeaseLost):
        sender.hold(session, Delivery, delivery["id"], 1, "pending")


def test_410_disables_the_webhook_and_what_waits_is_sent_when_it_is_enabled(
    client: httpx.Client, receiver: Receiver, add: Add
) -> None:
    webhook, receiver.statuses = add(receiver.url), [410]
    first, second = tell(client, webhook), tell(client, webhook)
    deliver_all()
    now = client.get(f"/webhooks/{webhook['id']}").json()
    assert (now["enabled"], "410" in now["disabled_reason"]) == (False, True)
    assert {each["id"]: each["status"] for each in deliveries(client, webhook)} == {
        first["id"]: "failed", second["id"]: "pending",
    }  # fmt: skip
    assert ids(receiver) == [first["event"]]
    refusal(client.post(f"/webhooks/{webhook['id']}/test"), 409, "invalid_state")
    refusal(client.post(f"/webhooks/{webhook['id']}/deliveries/{first['id']}/resend"), 409, "invalid_state")
    again = client.patch(f"/webhooks/{webhook['id']}", json={"enabled": True}).json()
    assert (again["enabled"], again["disabled_reason"]) == (True, None)
    deliver_all()
    assert ids(receiver) == [first["event"], second["event"]]


def test_a_slow_receiver_holds_up_nobody(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    release, stop = threading.Event(), threading.Event()
    with Receiver() as slow:
        slow.before = lambda: release.wait(60)
        late, quick = add(slow.url), add(receiver.url)
        waiting = [tell(client, late)["event"] for _ in range(40)]  # more than there are senders
        sent = [tell(client, quick)["event"] for _ in range(3)]
        sender.deliver_due(stop)
        eventually(lambda: ids(receiver) == sent, 30, "what the other one was told")
        assert ids(slow) == waiting[:1]
        release.set()
        eventually(lambda: len(deliveries(client, late, status="delivered")) == 40, 60, "the slow one's end")
        assert ids(slow) == waiting
    stop.set()


@pytest.mark.parametrize("status_line", [b"", b"HTTP/1.1 200 OK\r\nX-Slow: "])
def test_one_that_is_silent_or_trickles_is_given_up(
    client: httpx.Client, add: Add, monkeypatch: pytest.MonkeyPatch, status_line: bytes
) -> None:
    monkeypatch.setattr(sender, "ANSWER_SECONDS", 0.5)
    over = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(status_line)
            while not over.wait(0.05):
                try:
                    connection.sendall(b"x" if status_line else b"")
                except OSError:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        webhook = add(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        tell(client, webhook)
        deliver_all()
        over.set()
        thread.join()
    assert deliveries(client, webhook)[0]["error"] == "There was no answer within 0.5 s."


def test_what_is_no_http_is_no_answer(client: httpx.Client, add: Add) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def babble() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100_000)
                connection.sendall(b"SSH-2.0-OpenSSH\r\n\r\n")

        thread = threading.Thread(target=babble)
        thread.start()
        webhook = add(f"http://127.0.0.1:{listener.getsockname()[1]}/")
        tell(client, webhook)
        deliver_all()
        thread.join()
    assert deliveries(client, webhook)[0]["error"].startswith("There was no answer: ")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """A resolver of names that there are not: for each the addresses that it has in turn, the last ones for ever."""
    known: dict[str, list[list[str]]] = {}
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        answers = known.get(host.decode() if isinstance(host, bytes) else host)
        if answers is None:
            return ask(host, port, *arguments, **options)
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for each in addresses for found in ask(each, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def test_the_address_that_was_checked_is_the_one_that_is_called(
    client: httpx.Client, add: Add, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name has an allowed address when it is asked for, and one that is not whenever it is asked for again."""
    monkeypatch.setattr(get_settings(), "webhook_networks", "127.0.0.2/32")
    with Receiver("127.0.0.2") as allowed, Receiver("127.0.0.1", allowed.port) as inner:
        names["hooks.test"] = [["127.0.0.2"], ["127.0.0.1"]]
        webhook = add(f"http://hooks.test:{allowed.port}/")
        tell(client, webhook)
        deliver_all()
        assert (len(allowed.got), len(inner.got)) == (1, 0)
        assert allowed.got[0].headers["host"] == f"hooks.test:{allowed.port}"
        tell(client, webhook)
        deliver_all()
        assert (len(allowed.got), len(inner.got)) == (1, 0)
        error = deliveries(client, webhook)[0]["error"]
        assert "hooks.test" in error
        assert "BURNISH_WEBHOOK_NETWORKS" in error
        names["hooks.test"] = [["127.0.0.1", "127.0.0.2"]]
        pass_time()
        deliver_all()
        assert (len(allowed.got), len(inner.got)) == (2, 0)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localtest.test"])
def test_a_name_for_this_machine_is_seen_through(
    client: httpx.Client,
    receiver: Receiver,
    add: Add,
    names: dict[str, list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
) -> None:
    monkeypatch.setattr(get_settings(), "webhook_networks", "")
    names["localtest.test"] = [["127.0.0.1", "::1"]]
    webhook = add(f"http://{host}:{receiver.port}/")
    tell(client, webhook)
    deliver_all()
    assert receiver.got == []
    assert "no public address" in deliveries(client, webhook)[0]["error"]


def test_a_name_that_there_is_not_is_told(client: httpx.Client, add: Add) -> None:
    for name in ("nothing.invalid", "a" * 64 + ".test"):
        webhook = add(f"http://{name}/")
        tell(client, webhook)
        deliver_all()
        assert "has no address" in deliveries(client, webhook)[0]["error"]


def certificate(folder: Path, name: str) -> Path:
    """A file with a certificate of this host name, signed by itself, and its key."""
    key, subject = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    file, pem = folder / f"{name}.pem", serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(made.public_bytes(pem) + private)
    return file


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The certificate of hooks.test, which senders trust."""
    file = certificate(tmp_path, "hooks.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    outbound._tls.cache_clear()
    yield file
    outbound._tls.cache_clear()


def test_tls_goes_by_the_name_and_not_by_the_address(
    client: httpx.Client, add: Add, names: dict[str, list[list[str]]], trusted: Path
) -> None:
    with Receiver() as receiver:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(trusted)
        receiver._server.socket = context.wrap_socket(receiver._server.socket, server_side=True)
        names["hooks.test"] = names["other.test"] = [["127.0.0.1"]]
        right, wrong = (add(f"https://{name}:{receiver.port}/") for name in ("hooks.test", "other.test"))
        for webhook in (right, wrong):
            tell(client, webhook)
        deliver_all()
        assert len(receiver.got) == 1
        assert deliveries(client, right)[0]["status"] == "delivered"
        assert "certificate" in deliveries(client, wrong)[0]["error"].lower()


def test_the_housekeeping_worker_is_woken_and_ends_when_it_is_asked(
    client: httpx.Client, receiver: Receiver, add: Add, backend: Backend, tmp_path: Path
) -> None:
    environment = os.environ | backend.environment | {"BURNISH_WEBHOOK_NETWORKS": "127.0.0.0/8"}
    command = [sys.executable, "-m", "app.cli", "worker", "--queue", "housekeeping"]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log)
    try:
        webhook = add(receiver.url)
        event = tell(client, webhook)["event"]
        eventually(lambda: ids(receiver) == [event], 120, "a message")
        receiver.before = worker.terminate  # while it sends
        tell(client, webhook)
        assert worker.wait(120) == 0
        assert [each["status"] for each in deliveries(client, webhook)] == ["delivered", "delivered"]
    finally:
        worker.kill()
        worker.wait()
