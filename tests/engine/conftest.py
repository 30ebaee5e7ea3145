"""A home of its own, the models' rows, adapters made by PEFT, and the controller as a real process."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import delete

from app.kit import database, processes, storage
from app.kit.database import Base, utc_now, writing
from app.models.tables import Engine, EngineAdapter, Model
from app.projects.tables import Project
from app.settings import get_settings
from tests.conftest import DEMO_BASE, IN_CI, REPOSITORY, SHARED, Backend, eventually, settings_of
from worker.engine import vllm

BASES = (DEMO_BASE, SHARED / "models" / "reviews-base")
START_SECONDS = 300.0
# Adds nothing to a conversation, and shows tools in the manner of the family whose calls vLLM's parser `hermes` reads.
TEMPLATE = (
    """{% if tools %}<tool_call> {"arguments": {}}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"""
)
needs_vllm = pytest.mark.skipif(
    not (IN_CI or vllm.is_installed(get_settings())), reason="vLLM is not installed in .venv-vllm"
)


@pytest.fixture(scope="session")
def base() -> Path:
    """The folder of a small base model."""
    for path in BASES:
        if (path / "model.safetensors").exists():
            return path
    pytest.skip(f"there is no base model at {' or '.join(map(str, BASES))}")


@pytest.fixture(scope="session")
def make_adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Makes a LoRA for every linear layer, whose B weights are random so that it acts; by its seed."""

    def make(seed: int) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        path = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(path)
        return path

    return make


@pytest.fixture(scope="session")
def true_scores(base: Path) -> Callable[[Path | None, list[int]], float]:
    """transformers' and PEFT's log-probability, in fp32, of the last token."""

    def score(adapter: Path | None, ids: list[int]) -> float:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        with torch.inference_mode():
            return float(model(torch.tensor([ids])).logits[0, -2].log_softmax(-1)[ids[-1]])

    return score


@dataclass
class House:
    """A home with its database."""

    home: Path
    base: Path

    def add_model(self, id: str, kind: str = "base", location: str | Path | None = None, **fields: Any) -> None:
        """A ready model's row; its location is the base's folder unless given."""
        location = str(location or self.base)
        with writing() as session:
            fields = {
                "project_id": database.DEFAULT_PROJECT,
                "name": id,
                "source": location,
                "status": "ready",
            } | fields
            session.add(Model(id=id, kind=kind, location=location, **fields))

    def add_adapter(self, id: str, folder: Path, base_id: str) -> None:
        """A stored adapter, wanted in the engine of its base."""
        key = f"models/{id}"
        with storage.incoming() as incoming:
            storage.put_folder(Path(shutil.copytree(folder, incoming / "adapter")), key)
        self.add_model(id, "adapter", key, base_model_id=base_id)
        with writing() as session:
            session.add(EngineAdapter(model_id=id, engine_id=base_id, generation=0))

    def remove_model(self, id: str) -> None:
        """The model is deleted, and with it what was wanted of it."""
        with writing() as session:
            session.execute(delete(Model).where(Model.id == id))

    def want(self, model_id: str) -> None:
        """What the API does for a request whose engine is not up."""
        with writing() as session:
            row = session.get(Engine, model_id) or Engine(model_id=model_id, generation=0)
            row.status, row.error, row.wanted_at, row.last_used_at = "wanted", None, utc_now(), utc_now()
            session.add(row)

    def engine(self, model_id: str) -> Engine | None:
        """The engine's row as it is now."""
        with database.reading() as session:
            return session.get(Engine, model_id)

    def adapter(self, model_id: str) -> EngineAdapter | None:
        """The wanted adapter's row as it is now."""
        with database.reading() as session:
            return session.get(EngineAdapter, model_id)

    def ready(self, model_id: str, seconds: float = 60.0, above: int = 0) -> Engine:
        """The engine's row once it is ready in a generation above `above`."""

        def look() -> Engine | None:
            row = self.engine(model_id)
            assert row is not None
            assert row.status != "failed", row.error
            return row if row.status == "ready" and row.generation > above else None

        return eventually(look, seconds, f"the engine of {model_id} is ready")

    @contextmanager
    def controller(self, **settings: str) -> Iterator[psutil.Process]:
        """`python -m worker.engine` on this home, ended as a service manager does it."""
        names = {f"BURNISH_{name.upper()}": value for name, value in settings.items()}
        process = processes.spawn(
            [sys.executable, "-m", "worker.engine"],
            env=os.environ | names | {"BURNISH_HOME": str(self.home)},
            cwd=REPOSITORY,
            stderr=(self.home / "controller.log").open("wb"),
        )
        try:
            yield psutil.Process(process.pid)
        finally:
            started = time.monotonic()
            processes.stop(process, 15.0)
            assert time.monotonic() - started < 12.0, "the controller took too long to stop"


def engine_processes(controller: psutil.Process, word: str) -> list[psutil.Process]:
    """The processes below the controller whose command line has `word` (the engines' guards left out)."""
    found = []
    for process in controller.children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.Error:
            continue
        if any(word in each for each in line) and not any("processes.py" in each for each in line):
            found.append(process)
    return found


@contextmanager
def make_house(home: Path, base: Path, column: Mapping[str, str] | None = None) -> Iterator[House]:
    """A house at `home`, this process's settings and database pointed at it while it stands; on SQLite unless the
    `column`'s settings say otherwise. What an earlier house left in the database is gone."""
    with settings_of({**(column or {}), "BURNISH_HOME": str(home)}):
        Base.metadata.drop_all(database.engine())
        Base.metadata.create_all(database.engine())
        with writing() as session:
            session.add(Project(id=database.DEFAULT_PROJECT, name="default"))
        yield House(home, base)


@dataclass
class Served:
    """A house whose controller serves `model_base`, whose template writes the contents alone, and its adapter `model_a` on
    vLLM."""

    house: House
    controller: psutil.Process
    adapter: Path

    @property
    def row(self) -> Engine:
        return self.house.ready("model_base", START_SECONDS)

    @property
    def url(self) -> str:
        return str(self.row.url)


@pytest.fixture(scope="package")
def served(
    base: Path, make_adapter: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The one vLLM of all the tests of an engine alone: it takes the better part of a minute to start."""
    with make_house(tmp_path_factory.mktemp("home"), base) as house:
        folder = make_adapter(1)
        house.add_model("model_base", chat_template=TEMPLATE)
        house.want("model_base")
        house.add_adapter("model_a", folder, "model_base")
        with house.controller(engine="vllm") as controller:
            house.ready("model_base", START_SECONDS)
            yield Served(house, controller, folder)


@pytest.fixture
def house(tmp_path: Path, base: Path, backend: Backend) -> Iterator[House]:
    """A fresh home for one test."""
    with make_house(tmp_path, base, backend.environment) as house:
        yield house
