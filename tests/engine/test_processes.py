"""Real processes: nothing that was spawned outlives its parent, whoever is killed and however it hides."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from app.kit.processes import LOG_BYTES, LOG_FILES, spawn, stop
from tests.conftest import REPOSITORY, eventually

# Starts a grandchild that left its session and whose parent is gone, then tells its own pid and the grandchild's.
HIDER = """
import os, signal, sys, time
def tell(path):
    with open(path + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".new", path)
    while True:
        time.sleep(60)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else signal.SIG_DFL)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell(sys.argv[1])
    os._exit(0)
os.wait()
tell(sys.argv[2])
"""
PARENT = """
import sys, time
from app.kit.processes import spawn
process = spawn([sys.executable, *sys.argv[2:]], grace_seconds=float(sys.argv[1]))
print(process.pid, flush=True)
while True: time.sleep(60)
"""


def _pids(folder: Path) -> list[int]:
    """The child's and the hidden grandchild's pid, once both are there."""
    child, hidden = folder / "child", folder / "hidden"
    eventually(lambda: child.exists() and hidden.exists(), 20, "the processes have started")
    return [int(child.read_text()), int(hidden.read_text())]


def _gone(*pids: int) -> bool:
    def alive(pid: int) -> bool:
        try:
            return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(alive(pid) for pid in pids)


def _hider(folder: Path, *words: str) -> list[str]:
    return ["-c", HIDER, str(folder / "hidden"), str(folder / "child"), *words]


def _parent(folder: Path, grace: float, *words: str) -> tuple[subprocess.Popen[str], int]:
    """A process that spawned the hider, and the guard's pid."""
    command = [sys.executable, "-c", PARENT, str(grace), *_hider(folder, *words)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


@pytest.mark.parametrize("words", [(), ("deaf",)])
def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path, words: tuple[str, ...]) -> None:
    parent, guard = _parent(tmp_path, 0.5, *words)
    pids = _pids(tmp_path)
    parent.kill()
    parent.wait()
    eventually(lambda: _gone(guard, *pids), 10, "guard, child and hidden grandchild are gone")


def test_the_child_dies_with_its_guard(tmp_path: Path) -> None:
    process = spawn([sys.executable, *_hider(tmp_path, "deaf")])
    child, hidden = _pids(tmp_path)
    process.kill()
    process.wait()
    eventually(lambda: _gone(child), 10, "the child is gone")
    os.kill(hidden, signal.SIGKILL)  # beyond what a killed guard can see to


def test_a_fork_that_holds_the_pipe_does_not_keep_the_child_alive(tmp_path: Path) -> None:
    # What forks from the parent inherits the write end of the guard's pipe: its end alone would never come.
    script = PARENT.replace("print(process.pid", "import os; fork = os.fork()\nif fork: print(process.pid, fork")
    command = [sys.executable, "-c", script, "0.5", *_hider(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout is not None
    _, fork = (int(word) for word in parent.stdout.readline().split())
    pids = _pids(tmp_path)
    parent.kill()
    parent.wait()
    try:
        eventually(lambda: _gone(*pids), 10, "child and grandchild are gone")
    finally:
        os.kill(fork, signal.SIGKILL)


def test_a_child_that_ends_takes_its_orphans_with_it(tmp_path: Path) -> None:
    process = spawn([sys.executable, *_hider(tmp_path)], grace_seconds=0.5)
    child, hidden = _pids(tmp_path)
    os.kill(child, signal.SIGKILL)
    assert process.wait(10) == 137
    assert _gone(child, hidden)


def test_stop_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    process = spawn([sys.executable, *_hider(tmp_path, "deaf")], grace_seconds=300)
    pids = _pids(tmp_path)
    assert stop(process, 0.3) == 137
    assert _gone(*pids)


def test_sigterm_reaches_the_command_which_may_finish(tmp_path: Path) -> None:
    script = "trap 'echo done > done; exit 7' TERM; touch up; while :; do sleep 0.05; done"
    process = spawn(["sh", "-c", script], cwd=tmp_path)
    eventually((tmp_path / "up").exists, 10, "the command runs")
    assert stop(process, 10) == 7
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_the_exit_code_is_the_command_s(command: str, code: int) -> None:
    assert spawn(["sh", "-c", command]).wait(10) == code


def test_a_command_that_cannot_start_says_so(tmp_path: Path) -> None:
    process = spawn([tmp_path / "nothing"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert b"nothing: No such file or directory" in process.stderr.read()
    assert process.wait(10) == 127


def test_a_child_outlives_the_thread_that_spawned_it() -> None:
    spawned = []
    thread = threading.Thread(target=lambda: spawned.append(spawn(["sleep", "300"])))
    thread.start()
    thread.join()
    guard = psutil.Process(spawned[0].pid)
    child = eventually(lambda: guard.children(), 10, "the child has started")[0]
    # A parent-death signal tied to the thread would have come by the time the guard has answered another one.
    os.kill(guard.pid, signal.SIGCHLD)
    with pytest.raises(subprocess.TimeoutExpired):
        spawned[0].wait(0.3)
    assert child.is_running()
    assert stop(spawned[0], 5) == 143


def test_environment_output_and_descriptors_reach_the_command(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = spawn(
        ["sh", "-c", f"echo $WORD; echo passed > /dev/fd/{writer}; cat"],
        env={"WORD": "said", "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        pass_fds=[writer],
    )
    os.close(writer)
    assert process.stdout is not None
    assert process.stdout.read() == b"said\n"
    assert os.read(reader, 100) == b"passed\n"
    os.close(reader)
    assert process.wait(10) == 0


# Writes numbered lines of 100 bytes, some to standard error, and tells of an unfinished one at its end.
WRITER = """
import os
for first in range(0, {lines}, 500):
    os.write(1 + first // 500 % 2, b"".join(b"%098d\\n" % number for number in range(first, first + 500)))
os.write(2, b"the end")
"""


def test_a_log_is_appended_to_and_rotated_and_no_line_is_lost_or_cut(tmp_path: Path) -> None:
    log, lines = tmp_path / "child.log", (LOG_FILES + 2) * LOG_BYTES // 99 // 500 * 500
    log.write_text("what was there before\n")
    assert spawn([sys.executable, "-c", WRITER.format(lines=1000)], log=log).wait(60) == 0
    assert log.read_bytes().startswith(b"what was there before\n%098d\n" % 0)
    assert spawn([sys.executable, "-c", WRITER.format(lines=lines)], log=log).wait(60) == 0
    files = [*(tmp_path / f"child.log.{number}" for number in range(LOG_FILES, 0, -1)), log]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(0 < file.stat().st_size <= LOG_BYTES for file in files)
    *kept, end = b"".join(file.read_bytes() for file in files).split(b"\n")
    assert end == b"the end"
    assert [int(line) for line in kept] == list(range(lines - len(kept), lines))
    assert files[0].read_bytes().endswith(b"\n")


def test_a_child_whose_log_cannot_be_written_is_not_held_up() -> None:
    assert spawn([sys.executable, "-c", WRITER.format(lines=20_000)], log=Path("/dev/full")).wait(30) == 0
