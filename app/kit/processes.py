"""Child processes that never outlive the service, whatever kills whom.

`spawn` starts a command under a guard: this very file, run as a script. The guard adopts every orphan below it (child
subreaper), holds the read end of a pipe whose write end only the parent has, and ends the whole tree when that pipe
closes, when it is asked to, or when the command itself ends. With `log` it also keeps the command's output, in files that
it rotates: it lives exactly as long as the command does, so nobody else's death can block or break that pipe. Linux only.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING

# Only the guard's needs are imported above and where they are used: it starts in some 25 ms, without site-packages.
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import IO, NoReturn

KILL_NOW = signal.SIGUSR1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
# A log that would grow past LOG_BYTES is renamed to `.1`, the one before it to `.2`, and so on; LOG_FILES of them are kept.
LOG_BYTES, LOG_FILES = 16 * 2**20, 4
PIPE_BYTES = 64 * 2**10


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` with this interpreter.

    The module is looked for where Burnish is installed and never in the working directory (`-P`): that is the user's, and
    may hold an `app` or a `worker` that is not ours.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def spawn(
    command: Sequence[str | os.PathLike[str]],
    *,
    grace_seconds: float = 10.0,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `command` so that neither it nor anything it starts outlives this process. Safe to call from any thread.

    The process returned is the guard: signal it and wait for it as for the command. Its exit code is the command's, 128 + n
    when signal n killed that, 127 when it could not be started; and once it has exited nothing below it is alive. SIGTERM is
    forwarded to the command; `grace_seconds` later (also when this process dies) whatever is left is killed.
    The guard is the leader of a session of its own: a Ctrl-C in the terminal reaches the parent alone, which decides.
    With `log`, whatever is written to stdout and stderr is appended to that file, which is rotated; raises `OSError` if it
    cannot be opened. `stdin` is empty by default; the other arguments are those of `subprocess.Popen`.
    """
    import subprocess
    import weakref

    output = None if log is None else log.open("ab")
    lifeline, held = os.pipe()
    guard = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(lifeline), str(os.getpid()), str(grace_seconds)]
    guard.append("" if log is None else os.path.abspath(log))
    try:
        process = subprocess.Popen(
            [*guard, *(os.fspath(word) for word in command)],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=output or stdout,
            stderr=output or stderr,
            pass_fds=(lifeline, *pass_fds),
            start_new_session=True,
        )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(lifeline)
        if output is not None:
            output.close()
    # Popen objects of running processes are kept alive by the subprocess module, so this closes no sooner than the end.
    weakref.finalize(process, os.close, held)
    return process


def stop(process: subprocess.Popen[bytes], grace_seconds: float) -> int:
    """End a spawned process and everything below it: SIGTERM, then SIGKILL after `grace_seconds` (or, if that is sooner,
    after the grace it was spawned with). Returns its exit code; nothing of it is alive then."""
    import subprocess

    for number in (signal.SIGTERM, KILL_NOW):
        process.send_signal(number)
        try:
            return process.wait(grace_seconds if number == signal.SIGTERM else 5.0)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    return process.wait()


def _guard(lifeline: int, parent: int, grace_seconds: float, log: str, command: list[str]) -> int:
    """Run `command`, end everything below when it or the parent ends; returns the exit code to end with."""
    os.set_inheritable(lifeline, False)
    output, written = os.pipe() if log else (-1, -1)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    handled = {*STOP_SIGNALS, KILL_NOW, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_SETMASK, handled)
    signal.set_wakeup_fd(wake)
    for number in handled:
        signal.signal(number, lambda *_: None)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        if log:
            os.dup2(written, 1)
            os.dup2(written, 2)
        _become(command, guard)
    if log:
        os.close(written)
        os.set_blocking(output, False)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())

    code: int | None = None
    deadline: float | None = None
    watched = [lifeline, woken, output] if log else [lifeline, woken]
    while True:
        for pid, status in _reap():
            if pid == child:
                code = os.waitstatus_to_exitcode(status)
                code = 128 - code if code < 0 else code
                _signal(_descendants(), signal.SIGTERM)
                deadline = min(deadline or float("inf"), time.monotonic() + grace_seconds)
        if code is not None and not _has_children():
            while output in watched and _pump(output, log):
                pass
            return code
        left = 1.0 if deadline is None else deadline - time.monotonic()
        if left <= 0:
            _signal(_descendants(), signal.SIGKILL)
        # Killed processes are polled quickly; otherwise once a second, to see a parent whose pipe end a fork still holds.
        ready, _, _ = select.select(watched, [], [], min(max(left, 0.05), 1.0))
        received = os.read(woken, 4096) if woken in ready else b""
        orphaned = lifeline in ready or os.getppid() != parent
        if orphaned and lifeline in watched:
            watched.remove(lifeline)
        if output in ready and not _pump(output, log):
            watched.remove(output)
        if KILL_NOW in received:
            deadline = 0.0
        elif deadline is None and (orphaned or any(number in received for number in STOP_SIGNALS)):
            _signal([child], signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds


def _become(command: list[str], guard: int) -> NoReturn:
    """In the forked child: die with the guard, restore signals, and be the command."""
    try:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before it could be told
            os._exit(137)
        for number in {*signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _pump(output: int, log: str) -> bool:
    """Move what the pipe holds to the log. False when there is nothing, now or ever again."""
    try:
        data = os.read(output, PIPE_BYTES)
    except BlockingIOError:
        return False
    try:
        if os.fstat(1).st_size + len(data) > LOG_BYTES:
            end = data.find(b"\n") + 1  # of the line that the old file begins
            _write(data[:end])
            data = data[end:]
            _rotate(log)
        _write(data)
    except OSError:  # the disk is full: lines are lost, and the command never waits for a reader
        pass
    return bool(data)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _rotate(log: str) -> None:
    """Begin the log anew; its older files move up by one."""
    for number in range(LOG_FILES, 0, -1):
        newer = f"{log}.{number - 1}" if number > 1 else log
        if os.path.exists(newer):
            os.replace(newer, f"{log}.{number}")
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def _reap() -> list[tuple[int, int]]:
    """The children, adopted ones too, that ended since the last call: (pid, wait status)."""
    ended = []
    try:
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append(found)
    except ChildProcessError:
        pass
    return ended


def _has_children() -> bool:
    """Whether anything below the guard is left: orphans are its children, so no child means no descendant."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _descendants() -> list[int]:
    """Every process below this one, from the parents that /proc tells."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {os.getpid()})


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _prctl(option: int, value: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5:]))
