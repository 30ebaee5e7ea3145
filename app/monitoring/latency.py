"""How long requests take. The API processes of a home count in files, which each of them adds up when it is asked."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prometheus_client import CollectorRegistry, Histogram, disable_created_metrics, values
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

disable_created_metrics()  # which a sum over several processes doesn't have

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS = Histogram(
    "burnish_http_request_duration_seconds",
    "Time from a request to the end of its answer, also of one that is streamed.",
    ("method", "route", "status"),
    registry=CollectorRegistry(),
    buckets=BUCKETS,
)
# The counts of processes that have ended.
ENDED = "histogram_ended.db"

_folder: Path | None = None
_alive: IO[str] | None = None


def observe(method: str, route: str | None, status: int, seconds: float) -> None:
    """Counts a request. `route` is the template of its path: paths themselves would make series without end."""
    SECONDS.labels(method if method in METHODS else "other", route or "none", str(status)).observe(seconds)


def share(folder: Path) -> None:
    """From now on this process counts in files in `folder`, together with the others that do. To be called once, and before
    anything is counted."""
    global _folder, _alive
    name = secrets.token_hex(8)  # not the process's id: containers that share a home have the same ones
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _settle(folder)
        _alive = _alive_file(folder, name).open("w")
        fcntl.flock(_alive, fcntl.LOCK_EX)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        values.ValueClass = values.MultiProcessValue(lambda: name)
        SECONDS.labels("GET", "/health", "200")  # makes the file while nobody reads it
    _folder = folder


class RequestsCollector(Collector):
    """The histogram: of all processes that share a folder, else of this one."""

    def collect(self) -> Iterable[Metric]:
        if _folder is None:
            return list(SECONDS.collect())
        with _locked(_folder):
            return list(MultiProcessCollector(None, str(_folder)).collect())


def _settle(folder: Path) -> None:
    """Adds the counts of processes that ended to one file; where no process is left, counting begins anew."""
    files = list(folder.glob("histogram_*.db"))
    living = [file for file in files if _lives(folder, file)]
    counts: Counter[str] = Counter()
    for file in set(files) - set(living):
        try:
            for key, value, *_ in MmapedDict.read_all_values_from_file(str(file)):
                counts[key] += value
        except Exception as error:  # cut off when the machine went down
            log.warning("the request counts in %s cannot be read: %s", file, error)
        file.unlink()
    if not living:
        return
    ended = MmapedDict(str(folder / ENDED))
    for key, count in counts.items():
        ended.write_value(key, count, 0.0)
    ended.close()


def _lives(folder: Path, file: Path) -> bool:
    """Whether the process that counts in the file runs: it holds a lock, which no crash leaves behind."""
    path = _alive_file(folder, file.stem.removeprefix("histogram_"))
    if not path.exists():
        return False
    with path.open("w") as alive:
        try:
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    path.unlink()
    return False


def _alive_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.alive"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Whoever reads the files or changes which there are, one at a time."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
