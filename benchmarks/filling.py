"""Fills a database with finished jobs: copies of one that the service itself took to its end, with all that belongs to it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import psycopg

# The finished jobs of a project that has no others, the oldest of all.
SMALL = 100
# So many connections copy, index and vacuum at a time.
AT_ONCE = 2

# How the copies of a row differ from it, by table, in SQL; what is not named is copied. `n` counts the jobs. Every second
# one, and the first hundred, are other projects'; four in five succeeded; ten of a project trained on the same dataset.
# What takes longest is begun first.
DIGITS = "lpad(({})::text, 24, '0')"
THIS, OF_TEN = DIGITS.format("n"), DIGITS.format("(n - 1) / 20 * 20 + 2 - n % 2")
JOB, MODEL, DATASET = f"'job_00' || {THIS}", f"'model_00' || {THIS}", f"'ds_00' || {OF_TEN}"
FILE, REPORT, HASH = f"'file_00' || {THIS}", f"'rep_00' || {THIS}", f"repeat('0', 40) || {THIS}"
NAME = "'run-' || n"
FIRST_OF_TEN, SUCCEEDED = "(n - 1) % 20 < 2", "n % 20 < 16"
STATUS = f"CASE WHEN {SUCCEEDED} THEN 'succeeded' WHEN n % 20 < 19 THEN 'failed' ELSE 'cancelled' END"
PROJECT = (
    f"(SELECT id FROM projects WHERE name = CASE WHEN n <= {SMALL} THEN 'small' WHEN n % 2 = 0 THEN 'default' "
    "ELSE 'other' END)"
)
COPIES: dict[str, dict[str, str]] = {
    "events": {"job_id": JOB},
    "jobs": {
        "id": JOB, "name": NAME, "project_id": PROJECT, "status": STATUS, "dataset_id": DATASET,
        "model_id": f"CASE WHEN {SUCCEEDED} THEN {MODEL} END",
    },
    "metrics": {"job_id": JOB},
    "models": {
        "id": MODEL, "job_id": JOB, "name": NAME, "project_id": PROJECT, "source": f"'job:' || {JOB}",
        "location": f"'artifacts/' || {JOB} || '/1/adapter'",
        "facts": "(template.facts::jsonb || jsonb_build_object('stored_bytes', 1000000 + n))::json",
    },
    "audit": {"id": f"'audit_00' || {THIS}", "target": JOB, "project": PROJECT},
    "attempts": {"job_id": JOB, "outcome": STATUS},
    "checkpoints": {"id": f"'ckpt_00' || {THIS}", "job_id": JOB, "key": f"'checkpoints/' || {JOB} || '/1-5'"},
    "usage": {
        "id": f"'usage_00' || {THIS}", "model": NAME, "project_id": PROJECT, "day": "template.day - ({rows} - n) / 2000",
    },
    "files": {"id": FILE, "project_id": PROJECT, "sha256": HASH, "bytes": "1000 + n"},
    "reports": {"id": REPORT, "project_id": PROJECT, "file_id": FILE},
    "datasets": {"id": DATASET, "project_id": PROJECT, "identity": HASH, "report_id": REPORT, "file_id": FILE},
}  # fmt: skip
# Which row of a table is copied, where not those of the job, and for which jobs, where not for all.
OWN = {"jobs": "id = '{job}'", "audit": "target = '{job}' AND action = 'job.create'"}
OWN |= dict.fromkeys(("usage", "files", "reports", "datasets"), "true")
ONLY = {"models": SUCCEEDED} | dict.fromkeys(("files", "reports", "datasets"), FIRST_OF_TEN)


def fill(url: str, job: str, rows: int) -> None:
    """Copies the finished job of this id, which is the only one, with all that belongs to it, until there are `rows` more."""
    began = time.monotonic()
    with psycopg.connect(url) as connection:
        indexes = _drop_indexes(connection)
        connection.execute("CREATE SCHEMA original")
        for table in COPIES:
            own = OWN.get(table, "job_id = '{job}'").replace("{job}", job)
            connection.execute(f"CREATE TABLE original.{table} AS SELECT * FROM {table} WHERE {own}")
        copies = [_copies(connection, table, rows) for table in COPIES]
    for statements in (
        copies,
        indexes,
        [f"VACUUM ANALYZE {table}" for table in COPIES],
        ["VACUUM ANALYZE", "CHECKPOINT"],
    ):
        _run_all(url, statements)
        print(f"{rows} jobs: {statements[0].split()[0]} after {time.monotonic() - began:.0f} s", file=sys.stderr)
    with psycopg.connect(url) as connection:
        connection.execute("DROP SCHEMA original CASCADE")
        for table in COPIES:
            asked = f"SELECT count(*), pg_size_pretty(pg_total_relation_size('{table}')) FROM {table}"
            print(f"{rows} jobs: {table} {connection.execute(asked).fetchone()}", file=sys.stderr)


def _drop_indexes(connection: psycopg.Connection) -> list[str]:
    """Drops the indexes that no constraint needs, since to make them at the end is quicker; returns what makes them again."""
    found = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = ANY(%s) "
        "AND indexname NOT IN (SELECT conname FROM pg_constraint)",
        [list(COPIES)],
    ).fetchall()
    for name, _ in found:
        connection.execute(f"DROP INDEX {name}")
    return [definition for _, definition in found]


def _copies(connection: psycopg.Connection, table: str, rows: int) -> str:
    """The statement that copies the rows of a table, job after job, as they would have come."""
    named = connection.execute(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_name = %s AND table_schema = 'public' AND is_generated = 'NEVER'",
        [table],
    )
    names = [str(name) for (name,) in named]
    values = [COPIES[table].get(name, f"template.{name}").replace("{rows}", str(rows)) for name in names]
    # That the inner query names `n` makes it the inner one of the two loops.
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(values)} FROM generate_series(1, {rows}) AS n, "
        f"LATERAL (SELECT *, n AS job FROM original.{table} OFFSET 0) AS template WHERE {ONLY.get(table, 'true')}"
    )


def _run_all(url: str, statements: Iterable[str]) -> None:
    """Runs statements beside each other, each in a transaction of its own."""

    def run(statement: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")  # no triggers: what copies refer to is there
            connection.execute("SET synchronous_commit = off")
            connection.execute("SET maintenance_work_mem = '512MB'")
            connection.execute(statement)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, statements))
