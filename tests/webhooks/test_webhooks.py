"""What a webhook is, and which events it is told of: exactly those that happened, signed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import httpx
import openai
import orjson
import pytest
from sqlalchemy import select, update

from app.jobs import attempts
from app.jobs.lifecycle import TRANSITIONS
from app.jobs.tables import Job
from app.kit import queue
from app.kit.database import reading, utc_now, writing
from app.settings import get_settings
from app.webhooks.schemas import EventType
from app.webhooks.tables import Delivery, Webhook
from tests.datasets.helpers import refusal
from tests.webhooks.conftest import Add, Message, Receiver, deliver_all, deliveries
from tests.worker.test_reconcilers import empty_queue
from worker.reconcilers.expired_deliveries import remove_expired_deliveries
from worker.reconcilers.unseen_work import wake_for_unseen_work

Start = Callable[[], dict[str, Any]]


def unwrapped(message: Message, secret: str) -> dict[str, Any]:
    """The event, once the openai SDK has checked its signature."""
    sdk = openai.OpenAI(api_key="none", webhook_secret=secret)
    sdk.webhooks.verify_signature(message.body, message.headers)
    return dict(orjson.loads(message.body))


def types(receiver: Receiver, secret: str) -> list[str]:
    return [unwrapped(message, secret)["type"] for message in receiver.got]


def test_the_types_are_those_of_the_table() -> None:
    told = ["created", *(event for _, _, event in TRANSITIONS.values())]
    assert set(get_args(EventType)) == {f"job.{event}" for event in told}


def test_what_is_sent_is_signed_as_the_sdk_wants_it(
    client: httpx.Client, receiver: Receiver, add: Add, start: Start
) -> None:
    start()
    webhook = add(receiver.url, events=["job.created"])
    job = start()
    deliver_all()
    (message,) = receiver.got
    event = unwrapped(message, webhook["secret"])
    assert (event["id"], event["type"]) == (message.headers["webhook-id"], "job.created")
    assert event["data"] == job | {"queue": None}
    assert message.headers[":path"] == "/hook?a=b"
    assert message.headers["content-type"] == "application/json"
    for secret, body in (("whsec_c29tZXRoaW5nIGVsc2U=", message.body), (webhook["secret"], message.body + b" ")):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrapped(message._replace(body=body), secret)
    (delivery,) = deliveries(client, webhook)
    assert (delivery["status"], delivery["attempts"], delivery["response_status"]) == ("delivered", 1, 200)
    assert delivery["delivered_at"]
    assert delivery["next_attempt_at"] is None


def test_each_transition_is_told_with_the_job_as_it_was_then(
    client: httpx.Client, receiver: Receiver, add: Add, start: Start
) -> None:
    start()
    webhook = add(receiver.url)
    job = start()
    seen, url = [job], f"/jobs/{job['id']}"

    def look() -> None:
        seen.append(client.get(url).json())

    def say(verb: str) -> None:
        client.post(f"{url}/{verb}").raise_for_status()
        look()

    def run(end: Callable[..., None], *arguments: Any) -> None:
        claimed = attempts.claim("here")
        assert claimed is not None
        assert claimed.id == job["id"]
        look()
        with writing() as session:
            end(session, attempts.hold(session, claimed), *arguments)
        look()

    say("pause")
    say("resume")
    run(attempts.hand_over)
    run(attempts.lose, "worker_lost", "It was lost.")
    run(attempts.fail, "trainer_error", "It failed.")
    say("retry")
    say("cancel")
    deliver_all()
    events = [unwrapped(message, webhook["secret"]) for message in receiver.got]
    events = [event for event in events if event["data"]["id"] == job["id"]]
    assert [event["type"].removeprefix("job.") for event in events] == [
        "created", "paused", "resumed", "started", "requeued", "started", "requeued", "started", "failed", "retried",
        "cancelled",
    ]  # fmt: skip
    assert [event["data"] for event in events] == [job | {"queue": None} for job in seen]
    assert len({event["id"] for event in events}) == len(events)


def test_a_change_that_is_rolled_back_is_told_to_nobody(receiver: Receiver, add: Add, start: Start) -> None:
    start()
    add(receiver.url, events=["job.started"])
    start()

    class Broken(Exception):
        pass

    with pytest.MonkeyPatch.context() as patch:
        # Something that goes wrong after the event was put into the outbox and before the commit.
        original = attempts.move

        def broken(*arguments: Any, **data: Any) -> None:
            original(*arguments, **data)
            raise Broken

        patch.setattr(attempts, "move", broken)
        with pytest.raises(Broken):
            attempts.claim("here")
    deliver_all()
    assert receiver.got == []
    assert attempts.claim("here") is not None
    deliver_all()
    assert len(receiver.got) == 1


def test_one_is_told_of_what_it_wants_and_nothing_else(
    client: httpx.Client, receiver: Receiver, add: Add, start: Start
) -> None:
    start()
    ended, off = add(receiver.url, events=["job.cancelled"]), add(receiver.url)
    client.patch(f"/webhooks/{off['id']}", json={"enabled": False}).raise_for_status()
    client.post(f"/jobs/{start()['id']}/cancel").raise_for_status()
    deliver_all()
    assert types(receiver, ended["secret"]) == ["job.cancelled"] * 2  # the one before it too
    assert deliveries(client, off) == []
    changed = client.patch(f"/webhooks/{ended['id']}", json={"events": None}).raise_for_status().json()
    assert (changed["events"], changed["url"], changed["enabled"]) == (None, receiver.url, True)
    start()
    deliver_all()
    assert types(receiver, ended["secret"])[2:] == ["job.created"]


def test_a_sender_is_woken_after_the_commit_and_by_a_reconciler(receiver: Receiver, add: Add, start: Start) -> None:
    start()
    add(receiver.url, events=["job.created"])
    empty_queue()
    start()
    assert queue.pending("deliver") == 1
    empty_queue()
    wake_for_unseen_work()
    assert queue.pending("deliver") == 1
    deliver_all()
    empty_queue()
    wake_for_unseen_work()
    assert queue.pending("deliver") == 0


def test_a_secret_is_shown_once_and_sealed(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    webhook = add(receiver.url)
    assert webhook.pop("secret") not in client.get("/webhooks").text
    assert client.get(f"/webhooks/{webhook['id']}").json() == webhook
    with reading() as session:
        assert b"whsec_" not in session.get_one(Webhook, webhook["id"]).sealed.encode()


def test_an_old_secret_signs_for_a_day_beside_the_new_one(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    old = add(receiver.url)
    new = client.post(f"/webhooks/{old['id']}/rotate").raise_for_status().json()
    assert new["secret"] != old["secret"]
    client.post(f"/webhooks/{old['id']}/test").raise_for_status()
    deliver_all()
    for secret in (old["secret"], new["secret"]):
        assert types(receiver, secret) == ["webhook.test"]
    with writing() as session:
        session.execute(update(Webhook).values(rotated_at=utc_now() - timedelta(days=1)))
    client.post(f"/webhooks/{old['id']}/test").raise_for_status()
    deliver_all()
    assert unwrapped(receiver.got[1], new["secret"])["data"] == {"webhook": old["id"]}
    with pytest.raises(openai.InvalidWebhookSignatureError):
        unwrapped(receiver.got[1], old["secret"])


def test_a_test_event_is_sent_once_under_an_idempotency_key(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    path, key = f"/webhooks/{add(receiver.url)['id']}/test", {"Idempotency-Key": "once"}
    first, again = (client.post(path, headers=key) for _ in range(2))
    assert (first.status_code, first.json()) == (202, again.json())
    deliver_all()
    assert len(receiver.got) == 1


def test_deliveries_are_kept_for_a_month(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    webhook = add(receiver.url)
    old, new = (client.post(f"/webhooks/{webhook['id']}/test").json()["id"] for _ in range(2))
    with writing() as session:
        session.get_one(Delivery, old).created_at = utc_now() - timedelta(days=30)
    remove_expired_deliveries()
    assert [each["id"] for each in deliveries(client, webhook)] == [new]


def test_a_deleted_webhook_takes_its_deliveries_along(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    webhook = add(receiver.url)
    client.post(f"/webhooks/{webhook['id']}/test").raise_for_status()
    assert client.delete(f"/webhooks/{webhook['id']}").status_code == 204
    refusal(client.get(f"/webhooks/{webhook['id']}/deliveries"), 404, "webhook_not_found")
    deliver_all()
    assert receiver.got == []
    with reading() as session:
        assert session.scalars(select(Delivery).where(Delivery.webhook_id == webhook["id"])).all() == []


def test_a_project_has_so_many_at_most(client: httpx.Client, receiver: Receiver, add: Add) -> None:
    for _ in range(20):
        add(receiver.url)
    refusal(client.post("/webhooks", json={"url": receiver.url}), 409, "limit_reached")


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("ftp://example.org", "http or https"),
        ("example.org/hook", "http or https"),
        ("https://", "http or https"),
        ("https://name:word@example.org/", "credentials"),
        ("http://example.org:99999/", "99999"),
        ("http://a\tb/", "cannot be read"),
        ("http://10.0.0.1/", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://[::1]/", "not a public address"),
        ("http://[::ffff:10.0.0.1]/", "not a public address"),
        ("https://[64:ff9b::a00:1]/", "not a public address"),
        ("http://224.0.0.1/", "not a public address"),
        ("http://168.63.129.16/", "not a public address"),
        ("http://0.0.0.0/", "not a public address"),
        ("http://localhost:8000/", "not a public address"),
    ],
)
def test_a_url_that_cannot_be_is_refused(client: httpx.Client, url: str, named: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(get_settings(), "webhook_networks", "192.168.0.0/16")
        error = refusal(client.post("/webhooks", json={"url": url}), 422, "invalid_value")
    assert error["param"] == "url"
    assert named in error["message"]
    assert ("BURNISH_WEBHOOK_NETWORKS" in error["hint"]) == (named == "not a public address")


def test_a_job_that_is_deleted_leaves_its_events(
    client: httpx.Client, receiver: Receiver, add: Add, start: Start
) -> None:
    start()
    webhook = add(receiver.url, events=["job.cancelled"])
    job = start()
    client.post(f"/jobs/{job['id']}/cancel").raise_for_status()
    client.delete(f"/jobs/{job['id']}").raise_for_status()
    with reading() as session:
        assert session.get(Job, job["id"]) is None
    deliver_all()
    assert unwrapped(receiver.got[-1], webhook["secret"])["data"]["id"] == job["id"]
