"""Mends the sums of what projects store: a process of a version that keeps none may have run beside this one."""

from __future__ import annotations

from sqlalchemy import BigInteger, cast, func, select, union_all, update

from app.files.tables import File
from app.kit.database import reading, writing
from app.models.tables import Model
from app.projects import stored
from app.projects.tables import Project, Stored

SIZES = union_all(
    select(File.project_id, File.bytes.label("bytes")),
    select(Model.project_id, cast(Model.facts["stored_bytes"].as_string(), BigInteger)).where(Model.kind != "base"),
).subquery()
COUNTED = func.coalesce(func.sum(SIZES.c.bytes), 0)


def recount_stored() -> None:
    """Counts anew what each project stores whose sum is wrong."""
    counted = select(SIZES.c.project_id, COUNTED.label("bytes")).group_by(SIZES.c.project_id).subquery()
    both = select(Project.id).outerjoin(Stored).outerjoin(counted, counted.c.project_id == Project.id)
    wrong = both.where(func.coalesce(Stored.bytes, 0) != func.coalesce(counted.c.bytes, 0))
    with reading() as session:
        projects = list(session.scalars(wrong))
    for project in projects:
        with writing() as session:
            stored.add(session, project, 0)  # holds the sum: whoever adds to it now was either counted, or waits
            count = select(COUNTED).where(SIZES.c.project_id == project).scalar_subquery()
            session.execute(update(Stored).where(Stored.project_id == project).values(bytes=count))
