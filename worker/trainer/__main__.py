"""`python -m worker.trainer SPEC.json OUT/`, or `python -m worker.trainer --wait HOME/`

Reads a `TrainerSpec`, writes artifacts to OUT/ and events to standard output (see `worker.trainer.events`; the names of
the events and their fields are in `run.py` and `loop.py`). Exit status: 0 finished, 1 failed (the last event says why),
3 stopped by SIGTERM.

With `--wait` it imports what a run needs, then takes spec and out from a line on standard input (see `waiting.py`); status 0
where that ends without one. HOME/ only says, in the list of processes, whose it is.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from worker.trainer.devices import see_only_own
from worker.trainer.events import claim_stdout
from worker.trainer.failures import Failure, Stopped, of_anything
from worker.trainer.stopping import StopSignal

FINISHED, FAILED, STOPPED = 0, 1, 3


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m worker.trainer SPEC.json OUT/ | --wait HOME/", file=sys.stderr)
        return 2
    emit = claim_stdout()
    try:
        stop = StopSignal()
        # Everything is local files: no library may ask a model hub.
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "true"}
        # OpenMP reads this when torch is loaded. Threads that spin while they wait for one another make a step several
        # times as long wherever something else wants the cores: the API, an inference engine, another job.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if arguments[0] == "--wait":
            from worker.trainer.waiting import import_all, receive

            received = receive()
            import_all()
            given = received.get()
            if given is None:
                return FINISHED
            arguments = given
        see_only_own(Path(arguments[0]))
        from worker.trainer.run import read_spec, run

        run(read_spec(Path(arguments[0])), Path(arguments[1]), emit, stop)
    except Stopped:
        return STOPPED
    except Failure as failure:
        traceback.print_exc()
        emit("failed", code=failure.code, message=failure.message, hint=failure.hint)
        return FAILED
    except Exception as error:
        traceback.print_exc()
        cause = of_anything(error)
        emit("failed", code=cause.code, message=cause.message, hint=cause.hint)
        return FAILED
    return FINISHED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
