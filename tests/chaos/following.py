"""Clients that follow a job's events as a stream, are cut off by whatever dies, and go on from the last event that they had."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from tests.chaos.world import World

# A cut-off client comes back after so long, and one whose stream came to its end: the job may be tried again.
PAUSE_SECONDS = 0.5
# A stream that says nothing for longer than its comments may take is dead.
SILENCE_SECONDS = 40.0


@dataclass
class Follower:
    """What one client saw of a job's events, and how often a stream of it was cut off."""

    world: World
    job: str
    seen: list[int] = field(default_factory=list)
    cuts: int = 0
    is_gone: bool = False
    thread: threading.Thread | None = None

    def start(self, settled: threading.Event) -> None:
        """Follows the job in a thread until it is gone, or all has `settled` and a stream came to its end since."""
        self.thread = threading.Thread(target=self._follow, args=(settled,), daemon=True)
        self.thread.start()

    def end(self, seconds: float) -> bool:
        """Whether its last stream came to an end within so many seconds."""
        assert self.thread is not None
        self.thread.join(seconds)
        return not self.thread.is_alive()

    def _follow(self, settled: threading.Event) -> None:
        while True:
            is_last = settled.is_set()
            try:
                is_whole = self._read()
            except httpx.TransportError:
                is_whole = False
            if self.is_gone or (is_last and is_whole):
                return
            settled.wait(PAUSE_SECONDS)

    def _read(self) -> bool:
        """Reads one stream. True where it came to its end, which the server says. Raises `httpx.TransportError`."""
        headers = {"Accept": "text/event-stream"}
        if self.seen:
            headers["Last-Event-ID"] = str(self.seen[-1])
        with (
            self.world.client(SILENCE_SECONDS) as client,
            client.stream("GET", f"/jobs/{self.job}/events", headers=headers) as answer,
        ):
            self.is_gone = answer.status_code == 404
            if answer.status_code != 200:
                return False
            try:
                self._take(answer.iter_lines())
            except httpx.TransportError:
                self.cuts += 1
                raise
        return True

    def _take(self, lines: Iterator[str]) -> None:
        """Takes the events of a stream. One counts when the empty line after it has come: half a one is sent again."""
        fields: dict[str, str] = {}
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
                continue
            if "data" in fields:
                number = int(fields["id"])
                assert json.loads(fields["data"])["id"] == number
                self.seen.append(number)
            fields = {}
