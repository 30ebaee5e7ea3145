"""A trainer that has its imports done before there is a job: it waits for one line, runs that job, and ends."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from queue import SimpleQueue

_OOM_SCORE = Path("/proc/self/oom_score_adj")


def receive() -> SimpleQueue[list[str] | None]:
    """Reads one line from standard input while the caller imports: {"spec", "out", "log": paths}. The queue
    gets the arguments of the run, [spec, out]; None where the input ended without a line.

    From the line on standard error is the log, so that it also holds an import that fails.
    """
    received: SimpleQueue[list[str] | None] = SimpleQueue()
    usual = _OOM_SCORE.read_text()
    _OOM_SCORE.write_text("1000")  # where memory runs out, what only waits goes first

    def read() -> None:
        with os.fdopen(os.dup(0), "rb", buffering=0) as stream:  # no lock that the end of the process would wait for
            line = stream.readline()
        if not line.endswith(b"\n"):
            received.put(None)
            return
        _OOM_SCORE.write_text(usual)
        given = json.loads(line)
        with open(given["log"], "ab") as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        received.put([given["spec"], given["out"]])

    threading.Thread(target=read, daemon=True).start()
    return received


def import_all() -> None:
    """Import what a run needs, and what it would import only on its way, without initializing CUDA.

    With a GPU that leaves out PEFT and what imports it, about a third of the time: it imports bitsandbytes, which asks
    CUDA for the GPU's capability. A waiting trainer would take memory of a GPU that another process may be using.
    """
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401  # an example: most of it is what every model needs

    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        import worker.trainer.run  # noqa: F401
