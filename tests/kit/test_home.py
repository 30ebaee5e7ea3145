"""The home is its owner's alone."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import doctor, up
from app.kit import database, sealing
from app.settings import get_settings
from tests.conftest import settings_of


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home that isn't there yet, where the user's own habits are generous."""
    mask = os.umask(0)
    home = tmp_path / "not" / "there"
    with settings_of({"BURNISH_HOME": str(home)}):
        yield home
    os.umask(mask)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("make", [up.migrate, database.engine, sealing._keys])
def test_whatever_makes_the_home_makes_it_for_its_owner_alone(home: Path, make: object) -> None:
    assert callable(make)
    make()
    assert mode(home) == 0o700


def test_a_home_of_an_earlier_version_is_narrowed(home: Path) -> None:
    home.mkdir(parents=True)
    assert mode(home) == 0o777
    assert doctor.home(get_settings()).status == "warn"
    database.engine()
    assert mode(home) == 0o700
    assert "open to other users" not in doctor.home(get_settings()).found


def test_a_directory_that_is_meant_for_all_is_left_as_it_is(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o1777)
    database.engine()
    assert mode(home) == 0o1777
