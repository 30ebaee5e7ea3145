"""`burnish datasets import`: uploads what a LLaMA-Factory `dataset_info.json` names, an outcome for each dataset.

An outcome is `{"entry", "name", "status", "dataset", "rows", "report", "reason"}`; `status` is `imported`, `already there`,
`refused` (the entry or its rows are wrong), `failed` (a hub or the service could not do it) or `skipped`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from app.cli import output
from app.cli.dataset_info import Entry, Refused, Skipped, local_files, parse, upload_fields
from app.cli.failure import Failure
from app.cli.hub_datasets import TITLES, HubFailure, Wanted, fetch
from app.cli.sampling import sample
from app.cli.uploading import upload

if TYPE_CHECKING:
    from app.cli.client import Service

Outcome = dict[str, Any]

BAD = ("refused", "failed")


@dataclass(frozen=True)
class Source:
    """Where entries' files come from: the folder; and the hubs where `hubs` says so, `hub` first, kept in `keep`."""

    folder: Path
    hubs: bool
    hub: str
    keep: Path | None


def import_entries(
    service: Service, entries: dict[str, Any], source: Source, on_bad_rows: str | None
) -> Iterator[Outcome]:
    """Uploads what the entries name, one after another; no entry stops those after it."""
    for name, value in entries.items():
        with TemporaryDirectory(prefix="burnish-import-") as temporary:
            try:
                entry = parse(name, value)
                parts = _parts(entry, source, Path(temporary))
            except (Skipped, Refused, HubFailure) as error:
                status = {Skipped: "skipped", Refused: "refused", HubFailure: "failed"}[type(error)]
                yield _outcome(name, name, status, reason=str(error))
                continue
            except OSError as error:  # no permission, a full disk
                yield _outcome(name, name, "failed", reason=str(error))
                continue
            for part, file, note in parts:
                yield _send(service, entry, part, file, note, on_bad_rows)


def _parts(entry: Entry, source: Source, temporary: Path) -> list[tuple[str, Path, str]]:
    """The entry's files, each with the name of its dataset and a remark.

    Raises `Skipped`, `Refused`, `HubFailure`, `OSError`.
    """
    if entry.hubs:
        files = _fetch(entry, source, temporary)
        total = len(files)
        names = [entry.name] if total == 1 else [f"{entry.name}-{n:05}-of-{total:05}" for n in range(1, total + 1)]
    else:
        assert entry.file_name is not None
        files = local_files(source.folder, entry.file_name)
        names = [f"{entry.name}-{file.stem}" for file in files]
        if not (source.folder / entry.file_name).is_dir():
            names = [entry.name]
    if entry.num_samples is None:
        return [(name, file, "") for name, file in zip(names, files, strict=True)]
    if len(files) > 1:
        raise Refused(f"num_samples is taken of one file; these are {len(files)}")
    sampled = sample(files[0], entry.num_samples, temporary)
    note = f"{entry.num_samples} rows, drawn with seed 42"
    if sampled == files[0]:
        note = f"all rows: no more than the {entry.num_samples} of num_samples (LLaMA-Factory repeats some)"
    return [(names[0], sampled, note)]


def _fetch(entry: Entry, source: Source, temporary: Path) -> list[Path]:
    """The entry's files, from the hub that is preferred where it has both. Raises `Skipped`, `HubFailure`."""
    hub = source.hub if source.hub in entry.hubs else next(iter(entry.hubs))
    if not source.hubs:
        raise Skipped(f"it lies on {TITLES[hub]}: add --hubs to fetch it")
    output.say(f"Fetching {entry.name} from {TITLES[hub]} …")
    folder = temporary / "hub"
    if source.keep is not None:
        # A name of the file's author becomes the name of a folder of ours.
        folder = source.keep / (re.sub(r"[^\w-]", "_", entry.name) or "_")
    return fetch(Wanted(hub, entry.hubs[hub], entry.subset, entry.split, entry.folder), folder)


def _send(service: Service, entry: Entry, name: str, file: Path, note: str, on_bad_rows: str | None) -> Outcome:
    fields = upload_fields(entry, file.name)
    try:
        dataset, new = upload(service, file, name=name, on_bad_rows=on_bad_rows, **fields)
    except Failure as failure:
        reason = failure.message
        if failure.problems:
            first = failure.problems[0]
            place = " ".join(str(first[key]) for key in ("line", "path") if first.get(key) is not None)
            reason = f"line {place}: {output.problem_shown(first)}"
        status = "failed" if failure.temporary else "refused"
        return _outcome(entry.name, name, status, report=failure.report, reason=reason)
    except OSError as error:
        return _outcome(entry.name, name, "failed", reason=str(error))
    dropped = dataset.get("dropped_rows") or 0
    remarks = [note, f"{dropped} bad rows were dropped" if dropped else ""]
    return _outcome(
        entry.name, name, "imported" if new else "already there", dataset=dataset["id"], rows=dataset["rows"],
        report=dataset.get("report"), reason="; ".join(filter(None, remarks)) or None,
    )  # fmt: skip


def _outcome(
    entry: str, name: str, status: str, *, dataset: str | None = None, rows: int | None = None,
    report: str | None = None, reason: str | None = None,
) -> Outcome:  # fmt: skip
    return {
        "entry": entry, "name": name, "status": status, "dataset": dataset, "rows": rows, "report": report, "reason": reason,
    }  # fmt: skip
