"""What was ever counted, of all projects together: sums that never fall, whatever is deleted."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.kit.database import upsert
from app.usage.tables import Total


def add(session: Session, amounts: Mapping[tuple[str, str], float]) -> None:
    """Adds to the totals of these names and labels, in the caller's transaction, which then holds their rows: it does so
    last, and whoever adds to several does it in the same order."""
    insert = upsert(session, Total).values(
        [{"name": name, "label": label, "value": value} for (name, label), value in amounts.items()]
    )
    session.execute(
        insert.on_conflict_do_update(
            index_elements=["name", "label"], set_={"value": Total.value + insert.excluded.value}
        )
    )
