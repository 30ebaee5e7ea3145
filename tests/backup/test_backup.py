"""A backup is the service at one moment, whatever goes on meanwhile; restoring it gives that service, or nothing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import select

from app.backup.archive import MACHINE_TABLES
from app.backup.restoring import restore_backup
from app.backup.writing import write_backup
from app.jobs import attempts, logs
from app.jobs.tables import Job
from app.kit import storage
from app.kit.database import DEFAULT_PROJECT, Base, engine, reading, writing
from app.kit.errors import Conflict, InvalidValue, ServiceError
from app.main import create_app
from app.models.tables import Model
from app.secrets import service as secrets
from app.up import migrate
from tests.conftest import POSTGRES, REPOSITORY, Backend, eventually, object_store, serving, settings_of, unavailable
from tests.datasets.helpers import jsonl, new_row
from tests.projects.conftest import fine_tune
from worker.reconcilers.expired_leases import requeue_expired


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Callable[[str], dict[str, str]]]:
    """Settings of a service that has nothing yet, of either column."""
    databases = list[str]()

    def make(column: str) -> dict[str, str]:
        home = {"BURNISH_HOME": str(tmp_path / f"new-{token_hex(4)}"), "BURNISH_SECRET_KEY": "the same on both sides"}
        if column == "embedded":
            return home
        databases.append(f"burnish_test_{token_hex(4)}")
        try:
            with psycopg.connect(f"{POSTGRES}/postgres", autocommit=True, connect_timeout=3) as admin:
                admin.execute(f"CREATE DATABASE {databases[-1]}")
        except psycopg.OperationalError as error:
            unavailable(f"needs PostgreSQL: {error}")
        return home | {"BURNISH_DATABASE_URL": f"{POSTGRES}/{databases[-1]}"}

    yield make
    with psycopg.connect(f"{POSTGRES}/postgres", autocommit=True) as admin:
        for name in databases:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def old(backend: Backend, empty: Callable[[str], dict[str, str]]) -> dict[str, str]:
    """Settings of the service that is backed up; a new one for each test."""
    return empty(backend.name)


@contextmanager
def running(settings: dict[str, str]) -> Iterator[httpx.Client]:
    """The service of these settings, and a client of it."""
    with settings_of(settings):
        migrate()
        with serving(create_app()) as url, httpx.Client(base_url=url, timeout=60) as client:
            yield client


def rows() -> dict[str, list[Any]]:
    """Every row of what a backup has."""
    with engine().connect() as connection:
        return {
            table.name: sorted(connection.execute(select(table)).all(), key=str)
            for table in Base.metadata.sorted_tables
            if table.name not in MACHINE_TABLES
        }


def fill(client: httpx.Client, tmp_path: Path) -> dict[str, Any]:
    """Some of everything; the job that was made."""
    dataset = client.post("/datasets", content=jsonl([new_row()]), headers={"Idempotency-Key": "a"}).json()
    client.get(f"/datasets/{dataset['id']}/rows").raise_for_status()
    client.post("/datasets", content=b"not a row")
    client.put("/secrets/hf_token", json={"value": "kept"}).raise_for_status()
    client.post("/webhooks", json={"url": "https://example.org", "events": ["job.created"]}).raise_for_status()
    client.post("/projects", json={"name": "other", "limits": {"queued_jobs": 3}}).raise_for_status()
    key = f"artifacts/job_{token_hex(4)}/1"
    (tmp_path / "out/adapter/sub").mkdir(parents=True)
    (tmp_path / "out/adapter/weights").write_bytes(os.urandom(100_000))
    (tmp_path / "out/adapter/sub/ü").write_text("a name that is not ASCII")
    storage.put_folder(tmp_path / "out", key)
    fine_tune("default", "tuned", location=f"{key}/adapter")
    job: dict[str, Any] = client.post("/jobs", json={"base_model": "demo-base", "dataset": dataset["id"]}).json()
    claimed = attempts.claim("before")
    assert claimed is not None
    with writing() as session:
        row = attempts.hold(session, claimed)
        logs.add(session, row, "a line\n")
        attempts.hand_over(session, row)
    return job


@pytest.mark.parametrize("column", ["embedded", "production"])
def test_everything_comes_back_on_either_database(
    old: dict[str, str], empty: Callable[[str], dict[str, str]], tmp_path: Path, column: str
) -> None:
    with running(old) as client:
        fill(client, tmp_path)
        with reading() as session:
            location = session.scalars(select(Model.location).where(Model.name == "tuned")).one()
        weights = (storage.fetch_folder(str(location)) / "weights").read_bytes()
        write_backup(tmp_path / "all.tar")
        before, datasets = rows(), client.get("/datasets").json()["data"]
    with settings_of(empty(column)):
        manifest = restore_backup(tmp_path / "all.tar")
        assert rows() == before
        assert {name: table.rows for name, table in manifest.tables.items()} == {n: len(r) for n, r in before.items()}
        assert (storage.fetch_folder(str(location)) / "weights").read_bytes() == weights
        assert (storage.fetch_folder(str(location)) / "sub/ü").exists()
        assert secrets.reveal(DEFAULT_PROJECT, "hf_token") == "kept"
        with serving(create_app()) as url, httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/datasets").json()["data"] == datasets
            assert client.get(f"/datasets/{datasets[0]['id']}/rows").json()["data"]
            again = client.post("/datasets", content=jsonl([new_row()]))
            assert again.status_code == 201


def test_what_was_acknowledged_is_whole_whatever_goes_on_meanwhile(
    old: dict[str, str], empty: Callable[[str], dict[str, str]], tmp_path: Path
) -> None:
    acknowledged, deleted = dict[str, str](), set[str]()
    ended, lock = threading.Event(), threading.Lock()

    def load(client: httpx.Client) -> None:
        while not ended.is_set():
            made = client.post("/datasets", content=jsonl([new_row()])).raise_for_status().json()
            client.get(f"/datasets/{made['id']}/rows").raise_for_status()
            with lock:
                acknowledged[made["id"]] = made["sha256"]
            if len(acknowledged) % 3 == 0:
                with lock:
                    victim = next(iter(acknowledged.keys() - deleted))
                    deleted.add(victim)  # from here on it may be gone
                client.delete(f"/datasets/{victim}").raise_for_status()

    with running(old) as client:
        users = [threading.Thread(target=load, args=(client,)) for _ in range(3)]
        for user in users:
            user.start()
        promised = list[tuple[Path, dict[str, str], set[str]]]()
        for number in range(3):
            enough = 8 * (number + 1)
            eventually(lambda enough=enough: len(acknowledged) > enough, 30)
            with lock:
                before = dict(acknowledged)
            write_backup(tmp_path / f"{number}.tar")
            with lock:
                promised.append((tmp_path / f"{number}.tar", before, set(deleted)))
        ended.set()
        for user in users:
            user.join()
    for path, before, gone in promised:
        with settings_of(empty("embedded")):
            restore_backup(path)
            with serving(create_app()) as url, httpx.Client(base_url=url, timeout=60) as client:
                there = {each["id"]: each for each in client.get("/datasets?limit=1000").json()["data"]}
                assert before.keys() - gone <= there.keys()
                for id, dataset in there.items():  # also what came while it was made is whole
                    blob = storage.fetch_blob(dataset["sha256"])
                    assert hashlib.sha256(blob.read_bytes()).hexdigest() == dataset["sha256"]
                    assert len(client.get(f"/datasets/{id}/rows").raise_for_status().json()["data"]) == 1


def test_an_object_store_is_backed_up_into_another(tmp_path: Path) -> None:
    """A bucket of a real S3 server on loopback, into another bucket."""
    with object_store("old", "new"):
        with running({"BURNISH_HOME": str(tmp_path / "old"), "BURNISH_STORAGE_URL": "s3://old/team"}) as client:
            fill(client, tmp_path)
            write_backup(tmp_path / "all.tar")
            before = rows()
            datasets = client.get("/datasets").json()["data"]
        with settings_of({"BURNISH_HOME": str(tmp_path / "new"), "BURNISH_STORAGE_URL": "s3://new/team"}):
            restore_backup(tmp_path / "all.tar")
            assert rows() == before
            with serving(create_app()) as url, httpx.Client(base_url=url, timeout=60) as client:
                assert client.get(f"/datasets/{datasets[0]['id']}/rows").json()["data"]


def test_a_job_that_ran_runs_again(old: dict[str, str], empty: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    with running(old | {"BURNISH_LEASE_SECONDS": "0.05"}) as client:
        job = fill(client, tmp_path)
        assert attempts.claim("before") is not None
        write_backup(tmp_path / "all.tar")
    with settings_of(empty("embedded")):
        restore_backup(tmp_path / "all.tar")
        eventually(lambda: requeue_expired() or _status(job["id"]) == "queued", 5)
        assert attempts.claim("after") is not None


def _status(job: str) -> str:
    with reading() as session:
        return session.get_one(Job, job).status


def test_what_is_deleted_while_it_is_copied_is_left_out(
    old: dict[str, str], empty: Callable[[str], dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(old) as client:
        for _ in range(3):
            client.post("/datasets", content=jsonl([new_row()])).raise_for_status()
        fetch, fetched = storage.fetch_blob, list[str]()

        def delete_one(sha256: str) -> Path:
            if not fetched:  # after the snapshot, before its bytes are read
                victim = next(each for each in client.get("/datasets").json()["data"] if each["sha256"] == sha256)
                client.delete(f"/datasets/{victim['id']}").raise_for_status()
            fetched.append(sha256)
            return fetch(sha256)

        monkeypatch.setattr(storage, "fetch_blob", delete_one)
        manifest = write_backup(tmp_path / "all.tar")
        assert manifest.tables["datasets"].rows == 2
        assert fetched[0] not in manifest.blobs
    with settings_of(empty("embedded")):
        restore_backup(tmp_path / "all.tar")


def test_a_store_that_lost_or_changed_something_is_told(old: dict[str, str], tmp_path: Path) -> None:
    with running(old) as client:
        dataset = client.post("/datasets", content=jsonl([new_row()])).json()
        blob = storage.fetch_blob(dataset["sha256"])
        content = blob.read_bytes()
        blob.write_bytes(content[::-1])
        with pytest.raises(ServiceError, match="damaged in storage"):
            write_backup(tmp_path / "all.tar")
        blob.unlink()
        with pytest.raises(ServiceError, match="is not in storage"):
            write_backup(tmp_path / "all.tar")
        assert list(tmp_path.glob("all*")) == []
        blob.write_bytes(content)
        write_backup(tmp_path / "all.tar")
        with pytest.raises(Conflict, match="is there already"):
            write_backup(tmp_path / "all.tar")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A backup with something in it."""
    home = tmp_path_factory.mktemp("whole")
    with running({"BURNISH_HOME": str(home / "home")}) as client:
        fill(client, home)
        write_backup(home / "all.tar")
    return (home / "all.tar").read_bytes()


def _with_member(backup: bytes, name: str, change: Callable[[bytes], bytes] | None) -> bytes:
    """The backup with one member's bytes changed, or without it."""
    out = BytesIO()
    with tarfile.open(fileobj=BytesIO(backup)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            stream = source.extractfile(member)
            assert stream is not None
            content = stream.read()
            if member.name.startswith(name):
                if change is None:
                    continue
                content = change(content)
                member.size = len(content)
            target.addfile(member, BytesIO(content))
    return out.getvalue()


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda backup: backup[: len(backup) // 2], "not a whole backup"),
    "text": (lambda _: b"not a tar at all", "not a whole backup"),
    "empty": (lambda _: b"", "not a whole backup"),
    "no manifest": (lambda backup: _with_member(backup, "manifest", None), "not a whole backup"),
    "no blob": (lambda backup: _with_member(backup, "blobs/", None), "not a whole backup"),
    "other blob": (lambda backup: _with_member(backup, "blobs/", lambda b: b"x" + b[1:]), "damaged"),
    "other weights": (lambda backup: _with_member(backup, "folders/", lambda b: b"x" + b[1:]), "damaged"),
    "other rows": (lambda backup: _with_member(backup, "tables/jobs", lambda b: b.replace(b"queued", b"failed")), "damaged"),
    "newer": (lambda backup: _with_member(backup, "manifest", lambda b: b.replace(b'"format": 1', b'"format": 2')), "newer"),
    "unknown revision": (
        lambda backup: _with_member(backup, "manifest", lambda b: b.replace(b'"revision": "0', b'"revision": "9')), "newer"
    ),
    "a path that leads out": (
        lambda backup: _with_member(backup, "manifest", lambda b: b.replace(b"adapter/weights", b"../../../weights")),
        "leads out of its folder",
    ),
    "a key that leads out": (
        lambda backup: _with_member(backup, "manifest", lambda b: b.replace(b"artifacts/", b"../artifacts/")), "manifest is wrong"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_no_whole_backup_leaves_nothing(
    whole: bytes, empty: Callable[[str], dict[str, str]], tmp_path: Path, what: str
) -> None:
    damage, message = DAMAGED[what]
    (tmp_path / "bad.tar").write_bytes(damage(whole))
    (tmp_path / "good.tar").write_bytes(whole)
    with settings_of(empty("embedded")):
        with pytest.raises(InvalidValue, match=message):
            restore_backup(tmp_path / "bad.tar")
        restore_backup(tmp_path / "good.tar")  # so the database was empty
    assert not (tmp_path / "weights").exists()


def test_a_service_that_holds_something_is_left_alone(old: dict[str, str], whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(whole)
    with running(old):
        before = rows()
        with pytest.raises(Conflict, match="holds 1 audit, 1 models"):
            restore_backup(tmp_path / "good.tar")
        assert rows() == before


def test_a_killed_restore_is_done_again(old: dict[str, str], whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.tar").write_bytes(whole)
    command = [sys.executable, "-m", "app.cli", "restore", str(tmp_path / "good.tar")]
    environment = {"PATH": os.environ["PATH"], **old}
    killed = 0
    for delay in (0.2, 0.6, 0.9, 1.2, 1.5):
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
        try:
            process.wait(delay)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed
    if process.returncode != 0:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "holds" in done.stderr, done.stderr
    with settings_of(old), reading() as session:
        assert session.scalars(select(Model.name).where(Model.name == "tuned")).one() == "tuned"


def test_a_killed_backup_leaves_no_file_of_that_name(old: dict[str, str], tmp_path: Path) -> None:
    with running(old) as client:
        dataset = client.post("/datasets", content=jsonl([new_row()])).json()
        blob = storage.fetch_blob(dataset["sha256"])
        blob.unlink()
        os.mkfifo(blob)  # whose reader waits
        command = [sys.executable, "-m", "app.cli", "backup", str(tmp_path / "all.tar")]
        process = subprocess.Popen(command, cwd=REPOSITORY, env={"PATH": os.environ["PATH"], **old})
        eventually(lambda: list(tmp_path.glob("all.tar.part")), 30)
        process.kill()
        process.wait()
    assert not (tmp_path / "all.tar").exists()
