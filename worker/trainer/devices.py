"""The GPUs that a process of a run may use: only those are seen, and each is locked for as long as it lives."""

from __future__ import annotations

import json
import os
from pathlib import Path

from app.kit import gpus
from worker.trainer.failures import Failure

# A trainer whose supervisor was killed is given this long to end.
LOCK_SECONDS = 30.0


def see_only_own(spec_path: Path, rank: int = 0) -> int:
    """Does as the spec's `gpus` say: of several processes each sees one of them. To be called before anything asks CUDA which GPUs
    there are, so it reads the file by itself; one that cannot be read is told of by whoever reads it next. Returns the number of
    processes. Raises `Failure` `gpu_busy`."""
    try:
        spec = json.loads(spec_path.read_bytes())
        own, processes = spec.get("gpus"), int(spec.get("processes", 1))
    except (OSError, ValueError, TypeError, AttributeError):
        return 1
    if own is None:
        return processes
    own = own[rank : rank + 1] if processes > 1 else own
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    for uuid in own:
        if gpus.take(uuid, LOCK_SECONDS) is None:
            raise Failure(
                "gpu_busy",
                f"The GPU {uuid} is in use by another trainer.",
                "Give each worker of a machine GPUs of its own: `burnish worker --gpus`.",
            )
    return processes
