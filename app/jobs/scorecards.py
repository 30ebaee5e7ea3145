"""A scorecard in words."""

from __future__ import annotations

from typing import Any

# What is measured → how it is called and written.
LINES = {
    "loss": ("held-out loss", "{:.3f}"),
    "accuracy": ("exact answers", "{:.1%}"),
    "reward_accuracy": ("rewards the right way round", "{:.1%}"),
    "stop_rate": ("answers that end", "{:.1%}"),
    "repetition_rate": ("answers that repeat themselves", "{:.1%}"),
    "text_loss": ("loss on general text", "{:.3f}"),
}


def lines(card: dict[str, Any]) -> dict[str, str]:
    """What was measured by its name, base and fine-tune: `0.0% → 91.2%`."""
    both = {name: (card["base"].get(name), card["tuned"].get(name)) for name in LINES}
    return {
        LINES[name][0]: " → ".join("?" if value is None else LINES[name][1].format(value) for value in values)
        for name, values in both.items()
        if values != (None, None)
    }


def sentence(card: dict[str, Any]) -> str:
    """All of it in one sentence."""
    told = ", ".join(f"{name} {values}" for name, values in lines(card).items())
    return f"Base → fine-tune: {told}."
