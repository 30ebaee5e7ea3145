"""The one blob store, on a directory and on an object store: what was put comes back, whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from app.kit import storage
from app.settings import get_settings
from tests.conftest import object_store, settings_of


@pytest.fixture(scope="module", params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The settings' storage: the embedded default, or a bucket of a real S3 server on loopback."""
    home = {"BURNISH_HOME": str(tmp_path_factory.mktemp("home"))}
    if request.param == "directory":
        with settings_of(home):
            yield request.param
        return
    with object_store("burnish"), settings_of(home | {"BURNISH_STORAGE_URL": "s3://burnish/team"}):
        yield request.param


def put(content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    with storage.incoming() as folder:
        (folder / "file").write_bytes(content)
        storage.put_blob(folder / "file", sha256)
    return sha256


def test_a_blob_comes_back_and_goes(store: str) -> None:
    sha256 = put(b"some bytes")
    assert put(b"some bytes") == sha256
    assert storage.fetch_blob(sha256).read_bytes() == b"some bytes"
    storage.delete_blob(sha256)
    storage.delete_blob(sha256)
    with pytest.raises(FileNotFoundError):
        storage.fetch_blob(sha256)


def test_a_folder_comes_back_with_its_folders_whole_and_in_part(store: str) -> None:
    with storage.incoming() as folder:
        made = folder / "out"
        (made / "adapter").mkdir(parents=True)
        (made / "adapter" / "weights").write_bytes(b"w" * 1000)
        (made / "manifest.json").write_text("{}")
        storage.put_folder(made, "artifacts/job/1")
    part = storage.fetch_folder("artifacts/job/1/adapter")
    assert (part / "weights").read_bytes() == b"w" * 1000
    whole = storage.fetch_folder("artifacts/job/1")
    assert sorted(str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()) == [
        "adapter/weights",
        "manifest.json",
    ]
    storage.delete_folder("artifacts/job/1")
    with pytest.raises(FileNotFoundError):
        storage.fetch_folder("artifacts/job/1")


def test_nothing_is_left_of_what_was_being_received(store: str) -> None:
    def broken() -> Iterator[Path]:
        with storage.incoming() as folder:
            (folder / "half").write_bytes(b"x")
            yield folder
            raise ConnectionAbortedError

    receiving = broken()
    folder = next(receiving)
    with pytest.raises(ConnectionAbortedError):
        next(receiving)
    assert not folder.exists()


def store_elsewhere(key: str) -> None:
    """Stores a folder as another process does, which shares no cache with this one."""
    url = get_settings().blobs_url
    other, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    other.makedirs(f"{root}/{key}", exist_ok=True)
    other.pipe_file(f"{root}/{key}/file", b"theirs")


def test_what_another_process_stored_is_seen_and_deleted(store: str) -> None:
    store_elsewhere("artifacts/theirs/1")
    assert "artifacts/theirs/1" in storage.folders("artifacts")
    store_elsewhere("artifacts/theirs/2")
    assert "artifacts/theirs/2" in storage.folders("artifacts")
    storage.delete_folder("artifacts/theirs/2")
    other, root = fsspec.core.url_to_fs(get_settings().blobs_url, skip_instance_cache=True)
    assert not other.exists(f"{root}/artifacts/theirs/2")
