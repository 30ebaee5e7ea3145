"""Every stage and every method, each as a job that a small model learns from in seconds."""

from __future__ import annotations

from typing import Any

from tests.conftest import THOROUGH

FULL = {"learning_rate": 0.003}
SETTINGS = {"epochs": 4}
# On answers of the model that was taught to count; that a 7 in them is better is learned soon.
RL = {
    "max_new_tokens": 8, "batch_size": 32, "epochs": 3, "learning_rate": 0.01, "reward": {"type": "regex", "pattern": "7"}
}  # fmt: skip

STAGES: dict[str, dict[str, Any]] = {
    "sft": {},
    "pt": {"stage": "pt", "hyperparameters": {"max_length": 16}},
    "pt from random weights": {
        "stage": "pt", "method": {"type": "full"}, "hyperparameters": {"initial_weights": "random", **FULL}
    },
    "dpo": {"stage": "dpo"},
    "dpo with hinge": {"stage": "dpo", "hyperparameters": {"loss": "hinge"}},
    "dpo with ipo": {"stage": "dpo", "hyperparameters": {"loss": "ipo"}},
    "dpo with orpo": {"stage": "dpo", "hyperparameters": {"loss": "orpo"}},
    "dpo with simpo": {"stage": "dpo", "hyperparameters": {"loss": "simpo", "beta": 2.0}},
    "kto": {"stage": "kto"},
    "rm": {"stage": "rm"},
    "rl": {"stage": "rl", "hyperparameters": RL},
    "rl with rloo": {"stage": "rl", "hyperparameters": RL | {"algorithm": "rloo", "beta": 0.01}},
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "rslora": {"method": {"variant": "rslora", "alpha": 4}},
    "dora": {"method": {"variant": "dora"}},
    "pissa": {"method": {"variant": "pissa"}},
    "lora+ and neftune": {"method": {"plus": 4}, "hyperparameters": {"neftune_alpha": 5, "learning_rate": 0.005}},
    "gradient checkpointing": {"method": {"dropout": 0.1}, "hyperparameters": {"gradient_checkpointing": True}},
    "packed": {"hyperparameters": {"packing": True}},
    "qlora nf4": {"method": {"type": "qlora"}},
    "qlora fp4": {"method": {"type": "qlora", "quantization": "fp4", "double_quantization": False}},
    "qlora int8": {"method": {"type": "qlora", "quantization": "int8"}},
    "full": {"method": {"type": "full"}, "hyperparameters": FULL},
    "freeze": {"method": {"type": "freeze", "layers": 1}, "hyperparameters": FULL},
    "galore": {"method": {"type": "galore", "rank": 4, "update_interval": 3}, "hyperparameters": FULL},
    "apollo": {"method": {"type": "apollo", "rank": 4, "update_interval": 2}, "hyperparameters": FULL},
    "mod": {"method": {"type": "mod", "capacity": 0.5}, "hyperparameters": FULL},
}

# Left out of it: what is refused (quantised rewards; routers, where something is compared with; on random weights what does not
# train them all), and random weights by `full`, which are a row of their own.
WITHOUT = {"rm": ("qlora nf4", "qlora int8", "mod"), **dict.fromkeys(("dpo", "dpo with orpo", "kto", "rl"), ("mod",))}
WITHOUT["pt from random weights"] = ("rslora", "dora", "pissa", "qlora nf4", "qlora int8", "full", "freeze")
# Every method with every stage: too many for each run of the tests.
CROSSED = {
    f"{stage} by {method}": STAGES[stage] | {name: value for name, value in METHODS[method].items() if name == "method"}
    | {"hyperparameters": STAGES[stage].get("hyperparameters", {}) | METHODS[method].get("hyperparameters", {})}
    for stage in ("pt", "pt from random weights", "dpo", "dpo with orpo", "kto", "rm", "rl")
    for method in ("rslora", "dora", "pissa", "qlora nf4", "qlora int8", "full", "freeze", "galore", "apollo", "mod")
    if method not in WITHOUT.get(stage, ())
}  # fmt: skip
ALL = STAGES | METHODS | (CROSSED if THOROUGH else {})


def job(changes: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The job, with hyperparameters beside its own."""
    return changes | {"hyperparameters": SETTINGS | changes.get("hyperparameters", {}) | settings}
