"""Engine, sessions and column types: PostgreSQL in production, SQLite (WAL) embedded, one ORM for both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, ClassVar

from sqlalchemy import JSON, Connection, DateTime, Dialect, Engine, MetaData, create_engine, event, func, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

from app.kit.home import make_home
from app.settings import get_settings

DEFAULT_PROJECT = "proj_default"

INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Base(DeclarativeBase):
    """The parent of every table; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
    }


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with a time zone, in UTC, also on SQLite (which keeps none)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


@lru_cache
def engine() -> Engine:
    """The process's connection pool, made from the settings."""
    url = get_settings().sqlalchemy_url
    if not url.startswith("sqlite"):
        # Nothing is prepared: a plan that PostgreSQL makes for any value reads the whole table for a rare one.
        unprepared = {"prepare_threshold": None}
        return create_engine(
            url, pool_pre_ping=True, pool_size=10, max_overflow=20, pool_timeout=10, connect_args=unprepared
        )
    make_home()
    made = create_engine(url, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(made, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # Transactions are begun by hand (below): the driver's own BEGIN is deferred, and a deferred reader that turns writer fails.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(made, "begin")
    def _begin(connection: Any) -> None:
        write = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return made


@contextmanager
def reading() -> Iterator[Session]:
    """A session for a consistent read."""
    with Session(engine(), expire_on_commit=False) as session:
        yield session


@contextmanager
def writing() -> Iterator[Session]:
    """A session whose transaction commits when the block ends, and is rolled back when it raises; `after_commit` follows.

    On SQLite it takes the write lock at once (`BEGIN IMMEDIATE`), so that what it read is still so when it writes.
    """
    bind = engine().execution_options(write=True)
    with Session(bind, expire_on_commit=False) as session, session.begin():
        session.connection()  # begins now, not with the first statement
        yield session
    for act in session.info.get("after_commit", {}).values():
        act()


def after_commit(session: Session, name: str, act: Callable[[], None]) -> None:
    """Has a session of `writing` do something once its transaction has committed; of two of the same name, one."""
    session.info.setdefault("after_commit", {})[name] = act


@contextmanager
def snapshot() -> Iterator[Connection]:
    """A connection whose every read is of one moment. SQLite's transactions are so by themselves."""
    bind = engine()
    if bind.dialect.name == "postgresql":
        bind = bind.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    with bind.connect() as connection:
        yield connection


def upsert(session: Session, table: type[Base]) -> Any:
    """An insert into the table, of the dialect that is spoken, which has `on_conflict_do_update`."""
    return INSERTS[session.get_bind().dialect.name](table)


def database_now(session: Session) -> datetime:
    """The database's clock, the only one that leases are measured by."""
    if session.get_bind().dialect.name == "sqlite":
        stamp = session.scalar(text("SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')"))
        return datetime.fromisoformat(str(stamp)).replace(tzinfo=UTC)
    return session.execute(select(func.clock_timestamp(type_=UtcDateTime))).scalar_one()


def lease_until(session: Session, seconds: float) -> datetime:
    """When a lease of `seconds` that is taken now runs out."""
    return database_now(session) + timedelta(seconds=seconds)


def utc_now() -> datetime:
    """This process's clock, for what only informs (`created_at`)."""
    return datetime.now(UTC)
