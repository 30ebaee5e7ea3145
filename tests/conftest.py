"""What every test shares: the two columns of real parts, and the service on top of them."""

from __future__ import annotations

import gc
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psycopg
import pytest
import redis
import uvicorn

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"
DEMO_BASE = REPOSITORY / "app" / "models" / "demo_base"

POSTGRES = os.environ.get("BURNISH_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432")
REDIS = os.environ.get("BURNISH_TEST_REDIS", "redis://127.0.0.1:6379")
COLUMNS = ("embedded", "production")
T = TypeVar("T")

# No test leaves this machine. Each new HTTP client reads every authority of the usual list, which takes 20 ms; this list has one.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("one_authority.pem"))
# `make test-all`: every combination.
THOROUGH = os.environ.get("BURNISH_TEST_ALL") == "1"
IN_CI = os.environ.get("CI") == "true"
# Several processes may run the tests side by side, each in a key space of its own: 9, 10, ...
REDIS_NUMBER = 9 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))

# What starts vLLM, which is kept in one process: memory holds its two engines and a training, and no third.
VLLM_FILES = ("tests/engine/test_rendering.py", "tests/engine/test_vllm.py")
# What takes longest begins first, so that no process is left alone with it at the end.
FIRST = ("vllm", "system", "tests/chaos/", "tests/resume/", "tests/engine/", "tests/trainer/")


def group_of(nodeid: str) -> str:
    """Tests of one group run in the same process, in their order: those of a file and a column, which share what they
    start; those of the whole service on a column; and all that start vLLM."""
    file, _, name = nodeid.partition("::")
    parameters = name.partition("[")[2].rstrip("]").split("-")
    column = next((each for each in COLUMNS if each in parameters), "")
    if file in VLLM_FILES or (file.startswith("tests/system/") and column == "production"):
        return "vllm"
    return "system" if file.startswith("tests/system/") else f"{file} {column}"


def place_of(nodeid: str) -> tuple[int, int]:
    """What tests are sorted by where they are shared out: the longest groups come first. In a group, what kills the service's
    engines comes after what uses them, and what needs no service last."""
    group, file = group_of(nodeid), nodeid.partition("::")[0]
    first = next((number for number, start in enumerate(FIRST) if group.startswith(start)), len(FIRST))
    return first, 1 if file == "tests/system/test_deaths.py" else 2 if file in VLLM_FILES else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How the tests are shared out among processes: by group. (xdist's own marks for groups do nothing under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: place_of(item.nodeid))


def pytest_collection_finish() -> None:
    """What was imported stays: a full collection of garbage, which libraries ask for, need not look at it again."""
    gc.collect()
    gc.freeze()


def unavailable(reason: str) -> None:
    """Skips with a reason; in CI, where every part must be there, fails."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data, which lies beside the repository and not in it."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data of ../shared, which is not here")
    return SHARED / "data"


@dataclass(frozen=True)
class Backend:
    """One column of real parts: what `BURNISH_*` must say to use it."""

    name: str
    environment: dict[str, str]


@contextmanager
def parts(column: str, home: Path) -> Iterator[Backend]:
    """A column of real parts, empty: SQLite and the serverless queue; or PostgreSQL and Redis, in a database and a key space
    of this process's own."""
    settings = {"BURNISH_HOME": str(home)}
    if column == "embedded":
        yield Backend(column, settings)
        return
    name, number = f"burnish_test_{secrets.token_hex(4)}", REDIS_NUMBER
    try:
        admin = psycopg.connect(f"{POSTGRES}/postgres", autocommit=True, connect_timeout=3)
        queue = redis.Redis.from_url(f"{REDIS}/{number}", socket_connect_timeout=3)
        queue.flushdb()
    except (psycopg.OperationalError, redis.ConnectionError) as error:
        unavailable(f"needs PostgreSQL and Redis: {error}")
    admin.execute(f"CREATE DATABASE {name}")
    more = {"BURNISH_DATABASE_URL": f"{POSTGRES}/{name}", "BURNISH_BROKER_URL": f"{REDIS}/{number}"}
    yield Backend(column, settings | more)
    reset_caches()
    admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()
    queue.flushdb()


@pytest.fixture(scope="module", params=COLUMNS)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each column of real parts, empty at a module's beginning."""
    with parts(request.param, tmp_path_factory.mktemp(request.param)) as backend:
        yield backend


# For slow tests of what does not depend on the column: once is enough.
on_embedded = pytest.mark.parametrize(
    "backend", ["embedded", pytest.param("production", marks=pytest.mark.rare)], indirect=True
)


def reset_caches() -> None:
    """Forgets what this process made from the settings, so that others take effect."""
    from app.kit import database, queue, sealing, storage
    from app.projects import limits
    from app.settings import get_settings

    if database.engine.cache_info().currsize:
        database.engine().dispose()
    for cached in (get_settings, database.engine, queue._client, storage._store, sealing._keys, limits._counters):
        cached.cache_clear()


@contextmanager
def settings_of(environment: dict[str, str]) -> Iterator[None]:
    """This process's settings are those of `environment`, and nothing else, for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("BURNISH_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        reset_caches()
        yield
        reset_caches()


@contextmanager
def object_store(*buckets: str) -> Iterator[None]:
    """A real S3 server on loopback with these empty buckets, to which this process's S3 clients speak while the block runs."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        # s3fs keeps its clients for the life of the process, and one of an earlier server would be used again.
        s3fs.S3FileSystem.clear_instance_cache()
        for bucket in buckets:
            s3fs.S3FileSystem().mkdir(bucket)
        yield
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def service(backend: Backend) -> Iterator[str]:
    """The API on loopback, its schema migrated; its address. No worker runs behind it."""
    with settings_of(backend.environment | {"BURNISH_MAX_UPLOAD_BYTES": str(300 * 2**20)}):
        from app.main import create_app
        from app.up import migrate

        migrate()
        with serving(create_app()) as url:
            yield url


class serving:
    """An ASGI application under a real server in a thread of this process, for as long as the block runs."""

    def __init__(self, app: object) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))  # type: ignore[arg-type]
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)

    def __enter__(self) -> str:
        self.thread.start()
        eventually(lambda: self.server.started or not self.thread.is_alive(), 30)
        assert self.server.started
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture
def client(service: str) -> Iterator[httpx.Client]:
    """An HTTP client of the service."""
    with httpx.Client(base_url=service, timeout=60) as client:
        yield client


def eventually(condition: Callable[[], T], seconds: float, what: str = "the condition", every: float = 0.05) -> T:
    """The first true value of `condition`, looked at `every` so many seconds; fails when there is none within `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not hold within {seconds} s"
        time.sleep(every)
    return value
