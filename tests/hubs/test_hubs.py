"""The command line that talks to a hub: what it prints, and how it words what went wrong."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY as HERE
from tests.hubs.conftest import UNWANTED
from tests.hubs.server import COMMIT, REPOSITORY, Hub
from worker import hubs


def run(source: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and events of one run; every line of its standard output must be an event."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.hubs", source], cwd=HERE, capture_output=True, text=True, timeout=60
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_only_events_are_printed_and_a_second_run_fetches_nothing(scheme: str, hub: Hub, house: Path) -> None:
    code, events = run(f"{scheme}://{REPOSITORY}")
    assert code == 0
    assert {event["type"] for event in events[:-1]} == {"progress"}
    assert events[-1]["type"] == "finished"
    assert events[-1]["revision"] == COMMIT
    fetched = len(hub.fetched)
    code, again = run(f"{scheme}://{REPOSITORY}")
    assert again[-1] == events[-1]
    assert len(hub.fetched) == fetched
    total = sum(len(data) for name, data in hub.files.items() if name not in UNWANTED)
    assert again[0] == {"type": "progress", "bytes": total, "total_bytes": total}


def test_an_unreachable_hub_is_told_without_a_traceback_or_a_token(
    scheme: str, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, "hf_aVeryLongSecretToken")
    code, [failed] = run(f"{scheme}://{REPOSITORY}")
    assert code == 1
    assert failed["code"] == "hub_unreachable"
    assert "Traceback" not in failed["message"]
    assert "\n" not in failed["message"]
    assert "SecretToken" not in json.dumps(failed)


def test_a_full_disk_is_told_before_it_is_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(hubs.Refused, match="are free") as refused:
        hubs._check_room(tmp_path / "not" / "yet" / "there", 2)
    assert refused.value.code == "disk_full"


class GatedRepoError(Exception):
    """Named as huggingface_hub's."""


class FileDownloadError(Exception):
    """Has what modelscope's has: an error for every file that failed."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__("2 of 3 files failed\nwith more lines")
        self.failed_files = dict(enumerate(errors))


def caused(cause: Exception) -> Exception:
    error = RuntimeError("something")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full"),
        (FileDownloadError(ConnectionError("reset"), OSError(errno.ENOSPC, "No space left")), "disk_full"),
        (FileDownloadError(ConnectionError("reset")), "hub_unreachable"),
        (caused(GatedRepoError("403")), "access_denied"),
        (caused(TimeoutError()), "hub_unreachable"),
        (ValueError("odd"), "download_failed"),
    ],
)
def test_every_cause_has_a_code(error: Exception, code: str) -> None:
    told = hubs.describe(error, hubs.parse("modelscope://acme/base@v1"))
    assert told["code"] == code
    assert told["message"]
    assert "\n" not in told["message"]


def test_a_message_holds_no_token_and_no_signed_address() -> None:
    error = ValueError("GET https://cdn.example/file?Signature=abc with hf_abcdefghijk failed")
    message = hubs.describe(error, hubs.parse("hf://acme/base"))["message"]
    assert "cdn.example/file" in message
    assert "Signature" not in message
    assert "abcdefghijk" not in message
