"""Downloads need a hub, a home, and a worker that can be watched and stopped."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from app.kit.database import DEFAULT_PROJECT, Base, engine, reading, writing
from app.models import service
from app.models.schemas import ModelCreate
from app.models.tables import Model
from app.projects.tables import Project
from app.tables import TABLES
from tests.conftest import DEMO_BASE, SHARED, eventually, settings_of
from tests.hubs.server import Hub
from worker.downloads import download_next

WEIGHTS = "model.safetensors"
# What a repository may hold beside the model, and what must never be fetched.
UNWANTED = {
    "pytorch_model.bin": b"pickle", "modeling_base.py": b"raise SystemExit", "README.md": b"# Base",
    "onnx/config.json": b"{}", "consolidated.safetensors": b"the same weights again",
}  # fmt: skip


@pytest.fixture(scope="session")
def base_model() -> Path:
    """The folder of a small model."""
    folder = next((path for path in (DEMO_BASE, SHARED / "models" / "reviews-base") if path.is_dir()), None)
    if folder is None:
        pytest.skip("needs the demo base")
    return folder


@pytest.fixture
def hub(base_model: Path) -> Iterator[Hub]:
    """The hub, with the model and what a repository has besides."""
    files = {path.name: path.read_bytes() for path in base_model.iterdir() if path.is_file()}
    with Hub(files | UNWANTED) as hub:
        yield hub


@pytest.fixture(params=["hf", "modelscope"])
def scheme(request: pytest.FixtureRequest) -> str:
    """How a source of the hub begins."""
    return str(request.param)


@pytest.fixture
def caches(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The libraries' endpoints are the hub; their caches lie in this folder, `hf` and `modelscope`."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    variables = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "MODELSCOPE_ENDPOINT": hub.url,
        "MODELSCOPE_CACHE": str(tmp_path / "modelscope"), "MODELSCOPE_HOME": str(tmp_path / "credentials"),
        "NO_PROXY": "127.0.0.1", "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "1",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def house(caches: Path) -> Iterator[Path]:
    """A home with an empty SQLite database, beside the caches."""
    with settings_of({"BURNISH_HOME": str(caches / "home")}):
        create_tables()
        yield caches


def create_tables() -> None:
    """An empty database with the default project."""
    assert TABLES
    Base.metadata.create_all(engine())
    with writing() as session:
        session.add(Project(id=DEFAULT_PROJECT, name="default"))


def register(source: str) -> Model:
    """A model that waits for its download."""
    model = service.register(DEFAULT_PROJECT, ModelCreate(name=secrets.token_hex(4), source=source))
    assert model.status == "downloading"
    return model


def stored(model: Model) -> Model:
    """The model as the database has it now."""
    with reading() as session:
        return session.get_one(Model, model.id)


def download() -> None:
    """One attempt, as soon as there is a model whose lease has run out."""
    eventually(lambda: download_next(threading.Event()), 10, "a waiting model")


def children() -> list[psutil.Process]:
    """The processes that talk to a hub for this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[1:4] == ["-P", "-m", "worker.hubs"]:
                found.append(process)
        except (psutil.Error, IndexError):
            continue
    return found


@dataclass
class Attempt:
    """An attempt that runs in a thread."""

    shutting_down: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Attempt:
        self.thread = threading.Thread(target=download_next, args=(self.shutting_down,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutting_down.set()
        self.thread.join(30)

    def finish(self) -> None:
        """Waits for its end."""
        self.thread.join(30)
        assert not self.thread.is_alive()
        assert not children()


def until_held(hub: Hub) -> None:
    """Waits until every file but the weights has been sent to its end, and the weights to their middle."""
    wanted = {name for name in hub.files if name not in UNWANTED and name != WEIGHTS}
    eventually(lambda: hub.served >= wanted and hub.ranges(WEIGHTS), 30, "the download of everything but the weights")
