"""A short schedule of faults on each column of parts; `make chaos` runs long ones."""

from __future__ import annotations

import pytest

from tests.chaos.invariants import Twins
from tests.chaos.rounds import COLUMNS, run_round

SEED, FAULTS, JOBS = 3297, 3, 2


@pytest.fixture(scope="module")
def twins() -> Twins:
    return {}


@pytest.mark.timeout(900)  # longer than a round waits for its jobs: what does not end is told with its schedule
@pytest.mark.parametrize("column", COLUMNS)
def test_no_job_is_lost_or_doubled_whatever_dies(column: str, twins: Twins) -> None:
    result = run_round(SEED, column, FAULTS, twins, JOBS)
    assert not result.wrong, "\n".join(result.wrong)
