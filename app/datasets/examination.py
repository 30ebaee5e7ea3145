"""The check of an upload, which begins with its first bytes and is done by a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from app.datasets.examiner import Request
from app.datasets.examining import Findings
from app.datasets.reading import Options
from app.kit.errors import Unavailable
from app.kit.helpers import Helper, HelperDied, Helpers, unavailable
from app.settings import get_settings

# From the last byte on: a file that is checked as it arrives has most of it behind it then.
ANSWER_SECONDS = 3600.0
WAIT_SECONDS = 600.0

EXAMINERS = Helpers("app.datasets.examiner", places=1 + (os.cpu_count() or 1), environment={})


class Examination:
    """The check of the file that is being written to `path`; `folder` takes what it writes. Every method blocks."""

    def __init__(self, path: Path, folder: Path) -> None:
        self._path, self._folder = path, folder
        self._helper: Helper | None = None
        self._asked: Request | None = None

    def arrived(self, filename: str, options: Options, size: int) -> None:
        """The file has `size` bytes now. A place is always left to those whose file is complete: they do not wait for
        one that trickles in."""
        if self._helper is None:
            self._start(filename, options, EXAMINERS.take(0, leaving=1))
        if self._helper:
            self._send(b"%d" % size)

    def findings(self, filename: str, options: Options, size: int) -> Findings:
        """What was found, the file being complete. Raises `Unavailable` (`examiner_unavailable`)."""
        if self._asked and (self._asked.filename, self._asked.options) != (filename, options):
            self.end()  # what came after the file in the form says that it is to be read in another way
        if self._helper is None:
            self._start(filename, options, EXAMINERS.take(WAIT_SECONDS))
        if self._helper is None:
            raise unavailable("examiner_unavailable", "All processes that check uploads are busy.")
        self._send(b"[%d]" % size)
        try:
            return msgspec.json.decode(self._helper.answer(ANSWER_SECONDS), type=Findings)
        except HelperDied as died:
            raise _died() from died

    def end(self) -> None:
        """Nothing reads the file or writes to the folder any more."""
        if self._helper:
            EXAMINERS.give_back(self._helper)
            self._helper = self._asked = None

    def _start(self, filename: str, options: Options, helper: Helper | None) -> None:
        if helper:
            limit = get_settings().max_decompressed_bytes
            self._helper = helper
            self._asked = Request(str(self._path), filename, options, str(self._folder), limit)
            self._send(msgspec.json.encode(self._asked))

    def _send(self, line: bytes) -> None:
        assert self._helper is not None
        try:
            self._helper.send(line)
        except HelperDied as died:
            raise _died() from died


@contextmanager
def examination(path: Path, folder: Path) -> Iterator[Examination]:
    """The examination of a file, ended when the block is."""
    found = Examination(path, folder)
    try:
        yield found
    finally:
        found.end()


def _died() -> Unavailable:
    return unavailable("examiner_unavailable", "The process that checks uploads died of this file, or took too long.")
