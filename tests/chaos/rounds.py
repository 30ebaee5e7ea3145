"""One round: a world, its load, a schedule of faults, the settling, and the check. A schedule is a function of its seed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from app.kit.database import reading
from app.kit.queue import pending
from tests.chaos import invariants
from tests.chaos.faults import FAULTS
from tests.chaos.invariants import Twins
from tests.chaos.load import ENDED, SHAPES, Load, Sent, running
from tests.chaos.world import World, world
from tests.conftest import eventually, settings_of

COLUMNS = ("production", "embedded")
# Seconds from the end of one fault to the next.
PAUSES = (0.3, 4.0)
SETTLE_SECONDS = 600
CLEAN_SECONDS = 60
MAX_RETRIES = 3


@dataclass(frozen=True)
class Planned:
    """A fault, how long after the one before it, and what chooses its victim."""

    pause: float
    fault: str
    choice: float

    def __str__(self) -> str:
        return f"+{self.pause:.1f} s {self.fault} ({self.choice:.3f})"


@dataclass
class Result:
    """What a round came to."""

    seed: int
    column: str
    faults: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    resumed: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def schedule(seed: int, column: str) -> Iterator[Planned]:
    """The faults of a round, without end: every kind comes before one comes again."""
    chance = random.Random(f"{seed} {column}")
    while True:
        for fault in chance.sample(list(FAULTS), len(FAULTS)):
            yield Planned(chance.uniform(*PAUSES), fault, chance.random())


def run_round(seed: int, column: str, faults: int, twins: Twins, most_jobs: int = 1000) -> Result:
    """Runs a round. What an undisturbed job comes to is added to `twins`, for each shape that is not there yet."""
    result = Result(seed, column)
    planned = list(islice(schedule(seed, column), faults))
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{column} {seed}] {time.monotonic() - began:6.1f} s  {line}", flush=True)

    with world(column) as made, settings_of(made.environment):
        try:
            load = Load(made, random.Random(seed), most_jobs)
            load.prepare()
            poisoning = threading.Thread(target=load.poison, daemon=True)
            poisoning.start()
            with running(load):
                for plan in planned:
                    time.sleep(plan.pause)
                    met = FAULTS[plan.fault](load, plan.choice)
                    result.faults[plan.fault] += 1
                    tell(f"{plan.fault}: {met}")
            tell("settling")
            result.wrong += settle(load)
            load.settled.set()
            poisoning.join()
            result.wrong += _streams_end(load)
            tell("checking")
            result.wrong += _measure(load, twins)
            result.wrong += _settled(made)
            result.wrong += invariants.check(load, twins)
            result.wrong += _answers(load)
            _count(load, result)
            result.wrong += [f"did not end with the service: {command}" for command in made.end()]
        except Exception as error:
            result.wrong.append(f"{type(error).__name__}: {error}")
        if result.wrong:
            print("\n".join([f"seed {seed}, {column}: the schedule was", *map(str, planned)]))
            print("\n".join(["what is wrong:", *result.wrong]), flush=True)
            made.keep()
    return result


def _measure(load: Load, twins: Twins) -> Iterator[str]:
    """Finds an undisturbed twin for each job that was resumed: another one of its shape, or one that is sent now."""
    with reading() as session:
        known = [facts for facts in (invariants.facts_of(session, sent) for sent in load.jobs) if facts]
    ended = [
        facts for facts in known if facts.job.status == "succeeded" and facts.models and facts.sent.shape in SHAPES
    ]
    twins |= {
        facts.sent.shape: invariants.course(facts)
        for facts in ended
        if len(facts.all_attempts) == 1 and facts.sent.shape not in twins
    }
    resumed = {facts.sent.shape for facts in ended if any(attempt.resume for attempt in facts.all_attempts)}
    for shape in resumed - twins.keys():
        sent = load.send(shape, "none")
        eventually(lambda sent=sent: load.status(sent) in ENDED, 240, f"the end of an undisturbed job, {shape}")
        with reading() as session:
            facts = invariants.facts_of(session, sent)
        assert facts is not None
        if facts.job.status == "succeeded" and len(facts.all_attempts) == 1:
            twins[shape] = invariants.course(facts)
        else:
            yield f"nothing disturbed it, and yet: {invariants.job_line(facts)}; {facts.job.error}"


def settle(load: Load) -> list[str]:
    """Resumes what is paused and retries what the faults made fail, until every job has ended as it can. Returns failures
    that the faults do not account for."""
    wrong: list[str] = []
    retries: Counter[int] = Counter()
    deadline = time.monotonic() + SETTLE_SECONDS
    left = [sent for sent in load.jobs if sent.id]
    while left and time.monotonic() < deadline:
        left = [sent for sent in left if not _ended(load, sent, retries, wrong)]
        time.sleep(1.0)
    return wrong + [f"job {sent.number} ({sent.id}) is {load.status(sent)} after {SETTLE_SECONDS} s" for sent in left]


def _ended(load: Load, sent: Sent, retries: Counter[int], wrong: list[str]) -> bool:
    status = load.status(sent)
    if status == "paused":
        load.ask("POST", f"/jobs/{sent.id}/resume")
    if status == "failed":
        with reading() as session:
            facts = invariants.facts_of(session, sent)
            if facts is None or invariants.failed_by_nature(facts):
                return True
            untold = invariants.is_told(session, facts.job)
        if untold:
            wrong.append(untold)
        retries[sent.number] += 1
        if untold or retries[sent.number] > MAX_RETRIES:
            return True
        load.ask("POST", f"/jobs/{sent.id}/retry")
        return False
    return status in (*ENDED, "deleted")


def _streams_end(load: Load) -> Iterator[str]:
    """Yields the jobs whose streams go on though they ended."""
    for sent in load.jobs:
        if (follower := load.followers.get(sent.id or "")) and not follower.end(CLEAN_SECONDS):
            yield f"job {sent.number} ({sent.id}) has ended and its stream goes on"


def _settled(made: World) -> Iterator[str]:
    """Yields what is still there that should not be, when housekeeping has had its time: that of its start the day after,
    when everything is due."""
    invariants.a_day_passes()
    for worker in made.processes("housekeeping"):
        worker.terminate()
    for what, left in (
        ("a process that nobody owns", made.orphans),
        ("left over", invariants.leftovers),
        ("a blob of nobody", invariants.orphaned_blobs),
        ("wake-ups that nobody reads", lambda: [pending("train")] if pending("train") else []),
    ):
        try:
            eventually(lambda left=left: not left(), CLEAN_SECONDS)
        except AssertionError:
            yield from (f"{what}: {each}" for each in left())


def _answers(load: Load) -> Iterator[str]:
    """Asks what was deployed: two adapters and one model of merged weights."""
    with load.world.client() as client:
        models = client.get("/models", params={"limit": 1000, "status": "ready"}).json()["data"]
    for kind, count in (("adapter", 2), ("merged", 1)):
        for model in [model for model in models if model["kind"] == kind][:count]:
            body = {"model": model["name"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
            with load.world.client(240) as client:
                answer = client.post("/v1/chat/completions", json=body)
            if answer.status_code != 200:
                yield f"the model {model['name']} does not answer: {answer.status_code} {answer.text}"


def _count(load: Load, result: Result) -> None:
    with reading() as session:
        for sent in load.jobs:
            facts = invariants.facts_of(session, sent)
            result.jobs[facts.job.status if facts else "deleted"] += 1
            for attempt in facts.all_attempts if facts else []:
                result.attempts[str(attempt.outcome)] += 1
                if attempt.resume:
                    result.resumed[attempt.resume] += 1
    result.streams["followed"] = len(load.followers)
    result.streams["cut"] = sum(follower.cuts for follower in load.followers.values())
