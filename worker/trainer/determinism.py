"""Whether a run gives the same bits each time on a GPU, where many operations add up in whatever order threads come to an end."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import numpy as np
import torch

SUMS_DIFFER = "sums on a GPU differ from run to run without hyperparameters.deterministic"


def be_deterministic(wanted: bool) -> None:
    """Lets this process use only operations that repeat their bits, or any. Before anything of it has used a GPU: cuBLAS
    reads its variable when it starts. An operation that has no such form raises `RuntimeError` then."""
    if wanted:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(wanted)


def repeats_sums() -> bool:
    """Whether this process gives the same bits each time: on CPUs by itself."""
    return not torch.cuda.is_available() or torch.are_deterministic_algorithms_enabled()


def random_states() -> Callable[[], None]:
    """What puts every generator of random numbers of this process back to where it is now."""
    python, arrays, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def put_back() -> None:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)

    return put_back
