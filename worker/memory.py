"""How much memory a trainer held, and whether the kernel ended it for want of memory."""

from __future__ import annotations

from pathlib import Path

import psutil

# Where the kernel counts the processes that it killed for want of memory: of this container, else of the machine.
_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


class MemoryWatch:
    """Follows the memory of a process and all below it."""

    def __init__(self, pid: int) -> None:
        self.pid, self.peak_bytes, self.kills = pid, 0, _kills()

    def look(self) -> None:
        """Notes how much they hold now."""
        try:
            top = psutil.Process(self.pid)
            held = sum(_resident(process) for process in (top, *top.children(recursive=True)))
        except psutil.NoSuchProcess:
            return
        self.peak_bytes = max(self.peak_bytes, held)

    def ran_out(self) -> str | None:
        """A sentence, where the kernel has killed for want of memory since this watch began."""
        if _kills() == self.kills:
            return None
        total = psutil.virtual_memory().total
        return (
            f"The machine ran out of memory and the kernel ended the trainer, which had held up to "
            f"{self.peak_bytes / 2**30:.1f} of {total / 2**30:.1f} GiB."
        )


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _kills() -> int:
    for counter in _COUNTERS:
        try:
            lines = counter.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
