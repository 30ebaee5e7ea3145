"""Fetches a model from a hub, with the hub's own library, into that library's own cache: `python -m worker.hubs SOURCE`.

SOURCE is `hf://owner/name[@revision]` or `modelscope://owner/name[@revision]`. What the cache holds is not fetched again.
Standard output is JSON lines: `{"type": "progress", "bytes", "total_bytes"}` while it goes on, then one
`{"type": "finished", "folder", "revision"}` or `{"type": "failed", "code", "message", "hint"}` (exit code 1).
A process of its own, because the libraries read their settings once, print, and can only be stopped by ending them.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

# What a model needs. Pickled weights and code never come; what lies in folders is another format or a copy, and
# `consolidated` weights are the same ones again, in a layout that transformers does not read.
WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
# Fetched only where it may run.
OWN_CODE = "*.py"
UNWANTED = ["*/*", "consolidated*.safetensors"]

PROGRESS_SECONDS = 0.5
LOOKUP_SECONDS = 30.0
# A part of a file that nobody has written to for so long belongs to a process that was killed.
ABANDONED_AFTER_SECONDS = 3600.0

Say = Callable[[dict[str, Any]], None]


class Source(NamedTuple):
    """What to fetch. `revision` is a branch, a tag or a commit; None: the repository's default branch. `wanted` are the
    patterns of the files."""

    hub: str
    repository: str
    revision: str | None
    wanted: list[str]


class Refused(Exception):
    """A download that cannot succeed, known before it begins."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Progress:
    """Counts bytes over all files and threads. Says so every `PROGRESS_SECONDS` in which the count has changed."""

    def __init__(self, say: Say, sizes: dict[str, int], present: int) -> None:
        self.say, self.total, self.bytes = say, sum(sizes.values()), present
        self._lock = threading.Lock()
        threading.Thread(target=self._tell, daemon=True).start()

    def add(self, count: int) -> None:
        """`count` more bytes are there; fewer, where a file begins anew."""
        with self._lock:
            self.bytes = max(0, min(self.bytes + count, self.total))

    def _tell(self) -> None:
        said = None
        while True:
            if self.bytes != said:
                said = self.bytes
                self.say({"type": "progress", "bytes": said, "total_bytes": self.total})
            time.sleep(PROGRESS_SECONDS)


def fetch_hugging_face(source: Source, say: Say) -> tuple[str, str | None]:
    """Returns the snapshot's folder and its commit. Raises what huggingface_hub raises."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils.tqdm import tqdm

    repository = source.repository
    info = HfApi().model_info(repository, revision=source.revision, files_metadata=True, timeout=LOOKUP_SECONDS)
    sizes = _wanted(source, {file.rfilename: file.size or 0 for file in info.siblings or []})
    cached = [name for name in sizes if isinstance(try_to_load_from_cache(repository, name, revision=info.sha), str)]
    blobs = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "blobs"
    # The library begins a file anew after its process was killed, and never removes the part that is left of it.
    for part in blobs.glob("*.incomplete"):
        if time.time() - part.stat().st_mtime > ABANDONED_AFTER_SECONDS:
            part.unlink(missing_ok=True)
    present = sum(sizes[name] for name in cached)
    _check_room(Path(HF_HUB_CACHE), sum(sizes.values()) - present)
    progress = Progress(say, sizes, present)

    class Bar(tqdm):
        """Draws nothing. The library makes several; the one of this name counts the bytes of all files."""

        def __init__(self, *arguments: Any, name: str | None = None, **options: Any) -> None:
            self.counts = name == "huggingface_hub.snapshot_download"
            super().__init__(*arguments, **(options | {"name": name, "disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self.counts:
                progress.add(int(n or 0))
            return None

    # By commit, so that a push in the meantime cannot mix two revisions; and the library, which would return what
    # its cache holds of a branch when the hub is away, has been told by now which files there must be.
    folder = snapshot_download(
        repository, revision=info.sha, allow_patterns=source.wanted, ignore_patterns=UNWANTED, tqdm_class=Bar
    )
    return folder, info.sha


def fetch_modelscope(source: Source, say: Say) -> tuple[str, str | None]:
    """Returns the snapshot's folder and the newest commit that touched one of its files. Raises what modelscope raises."""
    # An hour per file, the library's own limit, is too little for a shard of some gigabytes on a slow line.
    os.environ.setdefault("MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT", str(7 * 24 * 3600))
    # It imports torch where it finds it, which takes seconds and half a gigabyte that a download has no use for.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    from modelscope import snapshot_download
    from modelscope_hub import CacheNotFound, HubApi, ProgressCallback
    from modelscope_hub.config import get_default_config

    repository, revision = source.repository, source.revision
    endpoint = HubApi().resolve_endpoint_for_read(repository)
    # The raw listing: the public one leaves the commits out.
    entries = HubApi(endpoint=endpoint).legacy.list_repo_files(repository, "model", revision or "master")
    files = {entry["Path"]: int(entry.get("Size") or 0) for entry in entries if entry.get("Type") != "tree"}
    sizes = _wanted(source, files)
    present = parts = 0
    try:
        cache = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        present = sum(size for name, size in sizes.items() if _size(cache / name) == size)
        parts = sum(_size(path) for path in cache.glob("*.incomplete"))
    except CacheNotFound:
        pass
    _check_room(get_default_config().cache_dir, sum(sizes.values()) - present - parts)
    progress = Progress(say, sizes, present)

    class Callback(ProgressCallback):
        def update(self, size: int) -> None:
            progress.add(size)

    folder = snapshot_download(
        repository, revision=revision, endpoint=endpoint, allow_patterns=source.wanted, ignore_patterns=UNWANTED,
        progress_callbacks=[Callback],
    )  # fmt: skip
    dated = [(entry.get("CommittedDate") or 0, entry["Revision"]) for entry in entries if entry.get("Revision")]
    return folder, max(dated)[1] if dated else None


@dataclass(frozen=True)
class Hub:
    """One hub: its name to people, its function above, the variables that a user may have to set, and the name of the
    secret that a project can keep in place of `token`."""

    title: str
    fetch: Callable[[Source, Say], tuple[str, str | None]]
    endpoint: str
    token: str
    cache: str
    secret: str


HUBS = {
    "hf": Hub("Hugging Face", fetch_hugging_face, "HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "hf_token"),
    "modelscope": Hub(
        "ModelScope",
        fetch_modelscope,
        "MODELSCOPE_ENDPOINT",
        "MODELSCOPE_API_TOKEN",
        "MODELSCOPE_CACHE",
        "modelscope_token",
    ),
}


def parse(text: str, own_code: bool = False) -> Source:
    """The parts of a source. Raises `ValueError` where it is not one."""
    match = re.fullmatch(r"(\w+)://([^/@]+/[^/@]+)(?:@(.+))?", text)
    if match is None or match[1] not in HUBS:
        raise ValueError(f"'{text}' is not {' or '.join(f'{hub}://owner/name[@revision]' for hub in HUBS)}")
    return Source(match[1], match[2], match[3], [*WANTED, OWN_CODE] if own_code else WANTED)


def _wanted(source: Source, sizes: dict[str, int]) -> dict[str, int]:
    """Those of a repository's files that are fetched. Raises `Refused` where there are no weights among them."""
    wanted = {
        name: size
        for name, size in sizes.items()
        if any(fnmatch(name, pattern) for pattern in source.wanted)
        and not any(fnmatch(name, pattern) for pattern in UNWANTED)
    }
    if not any(name.endswith(".safetensors") for name in wanted):
        raise Refused("no_safetensors", f"{len(sizes)} files, none of them .safetensors at the top")
    return wanted


def _check_room(cache: Path, needed: int) -> None:
    """Raises `Refused` where the disk cannot hold the rest: found out late, it would be full for everyone on it."""
    existing = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise Refused("disk_full", f"{needed / 1e9:.2f} GB are needed in {cache}, {free / 1e9:.2f} GB are free")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


# What the libraries raise, by the names of its classes (importing both to learn one failure would take seconds).
_NAMES = {
    "access_denied": "GatedRepoError DisabledRepoError AuthenticationError PermissionDeniedError",
    "source_not_found": "RepositoryNotFoundError RevisionNotFoundError NotExistError",
    "hub_unreachable": "ConnectionError TimeoutError Timeout TransportError ServerError RateLimitError",
    "download_failed": "RemoteEntryNotFoundError",
}
CAUSES = {name: code for code, names in _NAMES.items() for name in names.split()}
STATUSES = {401: "access_denied", 403: "access_denied", 404: "source_not_found", 408: "hub_unreachable"}
STATUSES |= dict.fromkeys((429, 500, 502, 503, 504), "hub_unreachable")
WORST_FIRST = ("disk_full", "access_denied", "source_not_found", "hub_unreachable", "download_failed")

GIVE_TOKEN = "keep an account's token with PUT /secrets/{secret}, or set {token} where the worker runs."

# Code → message and hint.
TEXTS = {
    "source_not_found": (
        "{title} has no model '{name}', or it is private.",
        "Check owner, name and revision. For a private model " + GIVE_TOKEN,
    ),
    "access_denied": (
        "{title} does not let this service read '{name}': the model is gated or private.",
        "Ask for access on the model's page, then " + GIVE_TOKEN,
    ),
    "hub_unreachable": (
        "{title} cannot be reached: {detail}",
        "Check the worker's network and proxy variables, or let {endpoint} name a mirror.",
    ),
    "disk_full": ("The disk has no room for '{name}': {detail}", "Make room, or let {cache} name a larger disk."),
    "no_safetensors": (
        "'{name}' on {title} has no safetensors weights: {detail}",
        "Only safetensors are read: take a repository that has them, or convert it and register the directory.",
    ),
    "download_failed": (
        "'{name}' could not be downloaded from {title}: {detail}",
        "Delete the model and register it again: what was downloaded is kept.",
    ),
}


def describe(error: BaseException, source: Source) -> dict[str, str]:
    """The code, message and hint of a failed download, in words that a user can act on; nothing of a secret."""
    hub, code = HUBS[source.hub], _code(error) or "download_failed"
    name = source.repository + (f"@{source.revision}" if source.revision else "")
    message, hint = TEXTS[code]
    fields = {"title": hub.title, "name": name, "detail": _detail(error)}
    variables = {"endpoint": hub.endpoint, "token": hub.token, "cache": hub.cache, "secret": hub.secret}
    return {"code": code, "message": message.format(**fields), "hint": hint.format(**variables)}


def _code(error: BaseException) -> str | None:
    """The code of what went wrong: by the error itself, else by the worst of what it was raised for."""
    if isinstance(error, Refused):
        return error.code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full"
    named = next((CAUSES[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in CAUSES), None)
    if code := named or STATUSES.get(getattr(getattr(error, "response", None), "status_code", 0)):
        return code
    below = [*getattr(error, "failed_files", {}).values(), error.__cause__ or error.__context__]
    codes = {_code(one) for one in below if one is not None}
    return next((code for code in WORST_FIRST if code in codes), None)


def _detail(error: BaseException) -> str:
    """The first line of an error, short, without the queries of addresses (which may be signed) and without tokens."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    line = re.sub(r"\?\S+|\b(hf_|ms-)[\w-]{8,}", "…", line)
    return line if len(line) <= 300 else line[:299] + "…"


def main(text: str, *options: str) -> int:
    """Fetches, with the model's code given `--own-code`; returns the process's exit code."""
    # The libraries print: what they write to standard output goes to standard error, the lines alone to the real one.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    lock, ended = threading.Lock(), False

    def say(event: dict[str, Any]) -> None:
        nonlocal ended
        with lock:
            if not ended:  # nothing follows the last line
                ended = event["type"] != "progress"
                lines.write(json.dumps(event) + "\n")
                lines.flush()

    source = parse(text, "--own-code" in options)
    try:
        folder, revision = HUBS[source.hub].fetch(source, say)
    except Exception as error:
        say({"type": "failed", **describe(error, source)})
        return 1
    say({"type": "finished", "folder": folder, "revision": revision})
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
