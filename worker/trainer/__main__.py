"""`python -m worker.trainer SPEC.json OUT/`, or `python -m worker.trainer --wait HOME/`

Reads a `TrainerSpec`, writes artifacts to OUT/ and events to standard output (see `worker.trainer.events`; the names of
the events and their fields are in `run.py` and `loop.py`). Exit status: 0 finished, 1 failed (the last event says why),
3 stopped by SIGTERM.

A run of several processes is told to the first, which starts the others (see `others.py`) as SPEC.json OUT/ RANK; of those
status 4 says that another one was gone.

With `--wait` it imports what a run needs, then takes spec and out from a line on standard input (see `waiting.py`); status 0
where that ends without one. HOME/ only says, in the list of processes, whose it is.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path

from worker.trainer.devices import see_only_own
from worker.trainer.events import claim_stdout
from worker.trainer.failures import Failure, Gone, Stopped, of_anything
from worker.trainer.others import FAILED, FINISHED, LEFT_ALONE, STOPPED, Others
from worker.trainer.stopping import StopSignal


def main(arguments: list[str]) -> int:
    if len(arguments) not in (2, 3):
        print("usage: python -m worker.trainer SPEC.json OUT/ | --wait HOME/", file=sys.stderr)
        return 2
    emit = claim_stdout()
    gc.disable()  # nothing of what is imported is garbage: looking for it takes a sixth of the time that importing takes
    rank = int(arguments[2]) if len(arguments) == 3 else 0
    others: Others | None = None
    try:
        stop = StopSignal(deferred=rank > 0)
        # Everything is local files: no library may ask a model hub.
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
        # GNU's OpenMP reads this when torch is loaded: how long a thread spins while it waits for another one before it sleeps. For
        # ever, a step takes several times as long wherever something else wants the cores; not at all, it takes half as long again.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        if arguments[0] == "--wait":
            from worker.trainer.waiting import import_all, receive

            received = receive()
            import_all()
            given = received.get()
            if given is None:
                return FINISHED
            arguments = given
        spec, out = Path(arguments[0]), Path(arguments[1])
        processes = see_only_own(spec, rank)
        if processes > 1 and rank == 0:
            others = Others(spec, out, processes, emit)
        from worker.trainer import ranks
        from worker.trainer.run import read_spec, run

        gc.freeze()  # what is imported stays: later collections need not look through it
        gc.enable()
        if processes > 1:
            ranks.join(rank, processes, out)
        run(read_spec(spec), out, emit if rank == 0 else _nobody_hears, stop)
    except Stopped:
        return STOPPED
    except Exception as error:
        traceback.print_exc()
        if others is not None:
            others.let_speak(wait=isinstance(error, Gone))
        if isinstance(error, Gone):
            return LEFT_ALONE  # without a word: whoever watches takes it for a death, and tries again
        cause = error if isinstance(error, Failure) else of_anything(error)
        emit("failed", code=cause.code, message=cause.message, hint=cause.hint)
        return FAILED
    return FINISHED


def _nobody_hears(type: str, **fields: object) -> None:
    """The events of a process that is not the first."""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
