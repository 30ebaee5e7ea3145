"""Optional packages. Burnish alone is the API and the commands; training needs the extra `train`."""

from __future__ import annotations

from importlib import util

TRAINING_PACKAGES = ("torch", "transformers", "peft", "accelerate")
INSTALL_TRAINING = "Install Burnish with its `train` extra: `pip install '.[train]'` in its source folder."


def missing_for_training() -> list[str]:
    """The packages that training needs and this environment lacks, seen without importing any."""
    return [name for name in TRAINING_PACKAGES if util.find_spec(name) is None]
