"""The reward models that a job's answers are judged by."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from app.jobs.hyperparameters import Reinforcement
from app.jobs.rewards import ByModel
from app.jobs.spec import JobSpec, RewardModel
from app.kit import storage
from app.kit.errors import InvalidValue, Refusals
from app.models.own_code import runs_own_code
from app.models.service import find
from app.models.tables import Model


def _judges(spec: JobSpec) -> list[tuple[int, ByModel]]:
    """The rewards that a model gives, each with its place."""
    settings = spec.hyperparameters
    rewards = settings.reward if isinstance(settings, Reinforcement) else []
    return [(place, each) for place, each in enumerate(rewards) if isinstance(each, ByModel)]


def hold(session: Session, project_id: str, spec: JobSpec) -> None:
    """Puts ids in the place of names, and holds these models until the transaction ends. Raises all refusals at once."""
    refusals = Refusals()
    for place, reward in _judges(spec):
        with refusals.catch():
            reward.model = _held(session, project_id, reward.model, f"hyperparameters.reward.{place}.model").id
    refusals.raise_all()


def _held(session: Session, project_id: str, name: str, param: str) -> Model:
    found = find(session, project_id, name)
    if found is not None:
        found = session.get(Model, found.id, with_for_update={"of": Model}, populate_existing=True)
    if found is None:
        raise InvalidValue(
            f"The reward model '{name}' does not exist.",
            param=param,
            code="model_not_found",
            hint="Train one with stage 'rm', or choose one of GET /models?kind=reward.",
        )
    if found.kind != "reward" or found.status != "ready":
        what = f"is {found.status}" if found.kind == "reward" else "is no reward model"
        raise InvalidValue(
            f"The model '{found.name}' {what}.",
            param=param,
            hint="Train one with stage 'rm', or choose one of GET /models?kind=reward.",
        )
    return found


def fetch(session: Session, spec: JobSpec) -> dict[str, RewardModel]:
    """Where the models lie on this machine, by their ids. Raises `FileNotFoundError`."""
    found: dict[str, RewardModel] = {}
    for _, reward in _judges(spec):
        model = session.get(Model, reward.model)
        if model is None:
            raise FileNotFoundError(None, "gone", f"The reward model {reward.model}")
        folder: Path = storage.fetch_folder(str(model.location))
        found[model.id] = RewardModel(
            folder=str(folder),
            chat_template=model.chat_template,
            template_arguments=model.template_arguments,
            own_code=runs_own_code(model),
        )
    return found
