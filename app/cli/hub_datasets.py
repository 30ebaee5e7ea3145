"""Fetches a dataset's files from a hub, with the hub's own library: `python -m app.cli.hub_datasets WANTED FOLDER`.

WANTED is the JSON of a `Wanted`. The last line of standard output is `{"files": […]}`, paths beneath FOLDER, or
`{"reason": "…"}`. A process of its own, because the libraries read their settings once, print, retry for as long as they
like, and can only be stopped by ending them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from app.cli.hub_files import NoFiles, choose
from app.kit.processes import python

# A download in which nothing has arrived for so long is given up.
STALL_SECONDS = 120.0
LOOK_SECONDS = 1.0
LOOKUP_SECONDS = 30.0

TITLES = {"modelscope": "ModelScope", "hf": "Hugging Face"}
TOKENS = {"modelscope": "MODELSCOPE_API_TOKEN", "hf": "HF_TOKEN"}
CARD = "README.md"


class HubFailure(Exception):
    """Nothing was fetched; the text says why."""


class Wanted(NamedTuple):
    """What to fetch; `hub` is `modelscope` or `hf`, the others are LLaMA-Factory's."""

    hub: str
    repository: str
    subset: str | None
    split: str
    folder: str | None


def fetch(wanted: Wanted, folder: Path) -> list[Path]:
    """Brings the wanted files into `folder`; returns them in order. Raises `HubFailure`."""
    folder.mkdir(parents=True, exist_ok=True)
    command = python("app.cli.hub_datasets", json.dumps(wanted), str(folder))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        said = _wait(child, folder)
    finally:
        child.kill()
        child.wait()
    lines = said.decode().splitlines()
    if not lines:
        raise HubFailure(f"the download ended with exit code {child.returncode}, without a word")
    answer = json.loads(lines[-1])
    if "reason" in answer:
        raise HubFailure(answer["reason"])
    return [folder / path for path in answer["files"]]


def _wait(child: subprocess.Popen[bytes], folder: Path) -> bytes:
    """What the child says until it ends. Raises `HubFailure` where nothing arrives any more."""
    size, since = -1, time.monotonic()
    while True:
        try:
            return child.communicate(timeout=LOOK_SECONDS)[0]
        except subprocess.TimeoutExpired:
            pass
        if (now := _size(folder)) != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > STALL_SECONDS:
            raise HubFailure(f"nothing has arrived for {STALL_SECONDS:.0f} seconds")


def _size(folder: Path) -> int:
    """Bytes of the files in a folder that others write to."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.lstat().st_size
        except OSError:  # moved to its place in the meantime
            continue
    return size


def fetch_hugging_face(wanted: Wanted, folder: Path) -> list[str]:
    """Fetches; returns the paths. Raises `NoFiles`, and what huggingface_hub raises."""
    from glob import escape

    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    name = wanted.repository
    info = HfApi().dataset_info(name, files_metadata=True, timeout=LOOKUP_SECONDS)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if CARD in sizes:
        hf_hub_download(name, CARD, repo_type="dataset", revision=info.sha, local_dir=folder)
    files = _choose(wanted, sizes, folder)
    patterns = [escape(file) for file in files]
    snapshot_download(name, repo_type="dataset", revision=info.sha, allow_patterns=patterns, local_dir=folder)
    return files


def fetch_modelscope(wanted: Wanted, folder: Path) -> list[str]:
    """Fetches; returns the paths. Raises `NoFiles`, and what modelscope_hub raises."""
    # modelscope imports torch where it finds it; its hub library, which `modelscope.snapshot_download` is, does not.
    from modelscope_hub import HubApi

    name = wanted.repository
    api = HubApi(endpoint=HubApi().resolve_endpoint_for_read(name, repo_type="dataset"))
    # The raw listing: the public one leaves the hashes out, which the download is checked against.
    entries = {entry["Path"]: entry for entry in api.legacy.list_repo_files(name, "dataset") if entry["Type"] != "tree"}
    if CARD in entries:
        api.download_repo(name, "dataset", local_dir=folder, file_list=[entries[CARD]])
    files = _choose(wanted, {path: int(entry.get("Size") or 0) for path, entry in entries.items()}, folder)
    api.download_repo(name, "dataset", local_dir=folder, file_list=[entries[file] for file in files])
    return files


FETCH = {"modelscope": fetch_modelscope, "hf": fetch_hugging_face}


def _choose(wanted: Wanted, sizes: dict[str, int], folder: Path) -> list[str]:
    """The files to fetch. Raises `NoFiles`, also where the disk has no room for them."""
    files = choose(list(sizes), _card(folder / CARD), wanted.subset, wanted.split, wanted.folder)
    needed, free = sum(sizes[file] for file in files if not (folder / file).exists()), shutil.disk_usage(folder).free
    if needed > free:
        raise NoFiles(f"{needed / 1e9:.2f} GB are needed in {folder}, {free / 1e9:.2f} GB are free")
    return files


def _card(file: Path) -> dict[str, Any]:
    """The metadata at the top of a README; nothing where there is none, or none that can be read."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    try:
        return (metadata_load(file) if file.exists() else None) or {}
    except (ValueError, YAMLError):
        return {}


# What the libraries raise, by the names of its classes and by the hub's answers.
Signs = frozenset[str | int]
DENIED: Signs = frozenset(
    {"GatedRepoError", "DisabledRepoError", "AuthenticationError", "PermissionDeniedError", 401, 403}
)
MISSING: Signs = frozenset({"RepositoryNotFoundError", "RevisionNotFoundError", "NotExistError", 404})
AWAY: Signs = frozenset(
    {"ConnectionError", "TimeoutError", "Timeout", "TransportError", "ServerError", "RateLimitError",
     "OfflineModeIsEnabled", 408, 429, 500, 502, 503, 504}
)  # fmt: skip


def explain(error: BaseException, wanted: Wanted) -> str:
    """Why nothing was fetched, in words; nothing of a secret."""
    hub, name = TITLES[wanted.hub], wanted.repository
    if isinstance(error, NoFiles):
        return f"'{name}' on {hub}: {error}"
    # A class says more than the number of an answer: Hugging Face answers 401 to what does not exist.
    signs = list(_signs(error))
    for sign in [sign for sign in signs if isinstance(sign, str)] + [sign for sign in signs if isinstance(sign, int)]:
        if sign in MISSING:
            return f"{hub} has no dataset '{name}', or it is private: then set {TOKENS[wanted.hub]}"
        if sign in DENIED:
            return f"{hub} does not let you read '{name}': ask for access on its page, then set {TOKENS[wanted.hub]}"
        if sign in AWAY:
            return f"{hub} cannot be reached, or is not well ({type(error).__name__})"
    return f"'{name}' could not be fetched from {hub}: {type(error).__name__}"


def _signs(error: BaseException) -> Iterator[str | int]:
    """Names of classes and status codes of an error and of what it was raised for."""
    yield from (kind.__name__ for kind in type(error).__mro__)
    yield getattr(getattr(error, "response", None), "status_code", 0)
    below = [*getattr(error, "failed_files", {}).values(), error.__cause__ or error.__context__]
    for one in below:
        if one is not None:
            yield from _signs(one)


def main(wanted_json: str, folder: str) -> None:
    """Fetches, and says what came of it."""
    # The libraries print: what they write to standard output goes to standard error, the last line alone to the real one.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    wanted = Wanted(*json.loads(wanted_json))
    try:
        said: dict[str, Any] = {"files": FETCH[wanted.hub](wanted, Path(folder))}
    except Exception as error:
        said = {"reason": explain(error, wanted)}
    with answer:
        print(json.dumps(said), file=answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
