"""`python -m tests.chaos N SEED`: N faults on both columns of parts, in rounds. Exit code 1 where a promise was broken."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import count

from tests.chaos.invariants import Twins
from tests.chaos.rounds import COLUMNS, Result, run_round

# Of one round on one column.
ROUND_FAULTS = 50


def main(faults: int, first_seed: int) -> int:
    """Runs so many faults and prints what came of them."""
    results: list[Result] = []
    twins: Twins = {}
    left = {column: (faults + place) // len(COLUMNS) for place, column in enumerate(COLUMNS)}
    for seed in count(first_seed):
        if not any(left.values()):
            break
        for column in COLUMNS:
            this_time = min(left[column], ROUND_FAULTS)
            left[column] -= this_time
            if this_time:
                results.append(run_round(seed, column, this_time, twins))
                print(summary(results[-1:]), flush=True)
    print(summary(results))
    broken = [result for result in results if result.wrong]
    for result in broken:
        print(f"\nseed {result.seed}, {result.column}: make chaos N={2 * ROUND_FAULTS} SEED={result.seed}")
        print("\n".join(f"  {what}" for what in result.wrong))
    return int(bool(broken))


def summary(results: list[Result]) -> str:
    """What happened in these rounds, a line for each kind of count."""
    names = ("faults", "jobs", "attempts", "resumed", "streams")
    counted = {name: sum((getattr(result, name) for result in results), Counter[str]()) for name in names}
    lines = [
        f"{len(results)} rounds, {counted['faults'].total()} faults, {sum(len(r.wrong) for r in results)} things wrong"
    ]
    for name, counts in counted.items():
        lines.append(f"{name}: " + ", ".join(f"{each} {number}" for each, number in sorted(counts.items())))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
