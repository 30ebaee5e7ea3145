"""`python -m worker.engine`: the engine controller, until SIGTERM or SIGINT."""

from __future__ import annotations

import signal
import threading

from app.kit import logs
from app.settings import get_settings
from worker.engine.controller import run


def main() -> None:
    """Run the controller in the foreground."""
    logs.configure()
    # Waited for, not handled: a handler that sets an event can deadlock with the loop that waits for it.
    ends = (signal.SIGTERM, signal.SIGINT)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    stop = threading.Event()
    controller = threading.Thread(target=run, args=(get_settings(), stop))
    controller.start()
    signal.sigwait(ends)
    stop.set()
    controller.join()


if __name__ == "__main__":
    main()
