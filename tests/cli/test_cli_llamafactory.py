"""A LLaMA-Factory configuration is the same job, or says what has no counterpart."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.cli.failure import Failure
from app.cli.llamafactory import body_of
from app.jobs.estimate import count_steps
from app.jobs.schemas import JobCreate
from tests.cli.conftest import Run
from tests.conftest import DEMO_BASE

# As its examples/train_lora/llama3_lora_sft.yaml, in its own words.
EXAMPLE = """
model_name_or_path: {model}
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj
dataset: {dataset}
template: qwen
cutoff_len: 256
overwrite_cache: true
output_dir: saves/out
logging_steps: 10
save_steps: 500
plot_loss: true
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.1
"""


def given(**changes: Any) -> dict[str, Any]:
    return {"model_name_or_path": "a", "dataset": "b"} | changes


def test_an_example_of_its_own_is_posted(run: Run, rows: Path, tmp_path: Path) -> None:
    name = f"rows-{tmp_path.name}"
    run("datasets", "add", rows, "--name", name)
    config = tmp_path / "config.yaml"
    config.write_text(EXAMPLE.format(model=DEMO_BASE, dataset=name))
    done = run("jobs", "from-llamafactory", config, "--json")
    assert done.exit_code == 0, done.stderr
    job = json.loads(done.stdout)
    assert (job["base_model"], job["stage"], job["method"]["rank"], job["method"]["alpha"]) == (
        "demo-base",
        "sft",
        4,
        8,
    )
    assert job["method"]["target_modules"] == ["q_proj", "v_proj"]
    assert job["validation"]["fraction"] == 0.1
    expected = {"batch_size": 8, "learning_rate": 1e-4, "epochs": 2, "scheduler": "cosine", "warmup_ratio": 0.1,
                "max_length": 256, "checkpoint_every": 500, "precision": "bf16"}  # fmt: skip
    assert expected.items() <= job["hyperparameters"].items()
    shown = run("jobs", "from-llamafactory", config, "--show")
    assert json.loads(shown.stdout)["dataset"] == job["dataset"]


def test_its_template_is_taken_where_the_model_has_none(run: Run, dataset: str, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(DEMO_BASE, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    name = f"bare-{secrets.token_hex(4)}"
    assert run("models", "add", name, bare).exit_code == 0
    config = tmp_path / "config.yaml"

    def shown(base: str, **keys: Any) -> Any:
        config.write_text(yaml.safe_dump(given(**keys)))
        return run("jobs", "from-llamafactory", config, "--dataset", dataset, "--base-model", base, "--show")

    assert json.loads(shown(name, template="qwen").stdout)["chat_template"] == "chatml"
    assert "chat_template" not in json.loads(shown("demo-base", template="qwen").stdout)
    assert json.loads(shown("demo-base", template="glm4").stdout)["chat_template"] == "glm4"
    off = json.loads(shown("demo-base", template="qwen3", enable_thinking=False).stdout)
    assert off["template_arguments"] == {"enable_thinking": False}
    assert "template: vicuna has no counterpart" in shown(name, template="vicuna").stderr
    assert "chat_template" not in json.loads(shown(name, stage="pt", template="qwen").stdout)


@pytest.mark.parametrize(
    ("config", "method", "hyperparameters"),
    [
        ({}, {"type": "lora"}, {"learning_rate": 5e-5, "batch_size": 8, "scheduler": "linear", "warmup_ratio": 0.0}),
        ({"quantization_bit": 4, "use_rslora": True}, {"type": "qlora", "variant": "rslora"}, {}),
        ({"quantization_bit": 8}, {"type": "qlora", "quantization": "int8"}, {}),
        ({"pissa_init": True, "loraplus_lr_ratio": 16}, {"variant": "pissa", "plus": 16}, {}),
        ({"finetuning_type": "full", "lora_rank": 8}, {"type": "full"}, {}),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 3}, {"type": "freeze", "layers": 3}, {}),
        ({"finetuning_type": "full", "use_galore": True, "galore_target": "all", "galore_scale": 0.25, "lora_rank": 8},
         {"type": "galore", "rank": 16, "scale": 0.25}, {}),
        ({"finetuning_type": "full", "use_apollo": True, "apollo_rank": 128, "apollo_update_interval": 100, "galore_rank": 4},
         {"type": "apollo", "rank": 128, "update_interval": 100}, {}),
        ({"finetuning_type": "full", "use_galore": False, "galore_rank": 4}, {"type": "full"}, {}),
        ({"finetuning_type": "full", "mixture_of_depths": "convert"}, {"type": "mod"}, {}),
        ({"stage": "dpo", "pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 0.7}, {},
         {"loss": "simpo", "beta": 2.0, "simpo_gamma": 0.7}),
        ({"stage": "kto", "pref_beta": 0.2, "pref_loss": "sigmoid"}, {}, {"beta": 0.2}),
        ({"pure_bf16": True, "bf16": True, "flash_attn": "fa2"}, {}, {"precision": "bf16"}),
        ({"neat_packing": True, "packing": False}, {}, {"packing": True}),
        ({"stage": "pt", "packing": False, "neat_packing": False}, {}, {"packing": False}),
        ({"stage": "dpo", "packing": True}, {}, {}),
        ({"stage": "dpo", "fp16": True, "bf16": False}, {}, {"precision": "fp16"}),
        ({"neftune_noise_alpha": 5}, {}, {"neftune_alpha": 5}),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, {}, {"scheduler": "constant", "warmup_ratio": 0.0}),
        ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, {},
         {"scheduler": "constant", "warmup_ratio": 0.1}),
    ],
)  # fmt: skip
def test_every_part_has_its_place(
    config: dict[str, Any], method: dict[str, Any], hyperparameters: dict[str, Any]
) -> None:
    body = body_of(given(**config))
    JobCreate.model_validate(body | {"base_model": "a", "dataset": "ds_b"})
    assert method.items() <= body["method"].items()
    assert hyperparameters.items() <= body["hyperparameters"].items()


def test_a_number_in_quotes_is_a_number_of_the_type_that_is_wanted() -> None:
    body = body_of(given(lora_rank="8", learning_rate="1e-4", seed="7"))
    job = JobCreate.model_validate({"base_model": "a", "dataset": "b"} | body)
    assert (job.method.model_dump()["rank"], job.hyperparameters.seed, job.hyperparameters.learning_rate) == (
        8,
        7,
        1e-4,
    )


@pytest.mark.parametrize(
    "config",
    [
        {"optim": "adamw_torch"}, {"optim": "adamw_torch_fused"}, {"optim": "adamw_hf"}, {"group_by_length": True},
        {"stage": "dpo", "neftune_noise_alpha": 0}, {"neftune_noise_alpha": 0}, {"do_train": True, "do_predict": True},
        {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": "1e-8"}, {"resume_from_checkpoint": None, "push_to_hub": False},
        {"ignore_pad_token_for_loss": True, "freeze_vision_tower": True, "do_sample": True}, {"greater_is_better": False},
        {"max_steps": -1}, {"some_new_key": False, "pref_bco_weight": 0.0},
    ],
)  # fmt: skip
def test_what_says_nothing_of_the_outcome_changes_nothing(config: dict[str, Any]) -> None:
    assert body_of(given(**config)) == body_of(given()) | ({"stage": config["stage"]} if "stage" in config else {})


@pytest.mark.parametrize(
    ("config", "said"),
    [
        *(({name: value}, name) for name, value in {
            "use_badam": True, "mask_history": True, "lr_scheduler_type": "polynomial", "val_size": 500,
            "quantization_bit": 2, "finetuning_type": "oft", "a_new_key": 3, "galore_proj_type": "left",
            "mixture_of_depths": "convert", "load_best_model_at_end": True, "early_stopping_steps": 3,
            "metric_for_best_model": "accuracy", "flash_attn": "fa9", "freeze_extra_modules": "embed_tokens",
            "optim": "adafactor", "adam_beta2": 0.95, "pref_loss": "kto_pair", "resume_from_checkpoint": "saves/checkpoint-500",
            "adapter_name_or_path": "saves/first", "additional_target": "embed_tokens", "greater_is_better": True,
            "push_to_hub": True, "ignore_pad_token_for_loss": False, "freeze_vision_tower": False, "warmup_steps": 20,
            "freeze_trainable_modules": "mlp", "create_new_adapter": True,
        }.items()),
        *(({"stage": stage, "neftune_noise_alpha": 5}, f"neftune_noise_alpha 5 .* in stage {stage}")
          for stage in ("pt", "dpo", "kto", "rm")),
        *((config, "do_train: false") for config in (
            {"do_train": False, "do_predict": True}, {"do_train": False}, {"do_predict": True}, {"do_eval": True},
        )),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "quantization_bit 4"),
        ({"use_dora": True, "pissa_init": True}, "dora and pissa"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16"),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": -2}, "freeze_trainable_layers -2"),
        ({"use_galore": True}, "use_galore with finetuning_type lora"),
        ({"use_galore": True, "use_apollo": True, "finetuning_type": "full"}, "use_galore and use_apollo"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_named(config: dict[str, Any], said: str) -> None:
    with pytest.raises(Failure, match=said):
        body_of(given(**config))


@pytest.mark.parametrize("rows", [1, 20, 100_000])
def test_max_steps_are_made_whatever_the_epochs_are(rows: int) -> None:
    body = body_of(given(max_steps=1000, num_train_epochs=2.0))
    job = JobCreate.model_validate(body | {"base_model": "a", "dataset": "ds_b"})
    assert count_steps(rows, job.hyperparameters) == 1000


def test_more_max_steps_than_the_rows_can_make_are_named(run: Run, dataset: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def shown(**keys: Any) -> Any:
        config.write_text(yaml.safe_dump(given(**keys)))
        return run("jobs", "from-llamafactory", config, "--dataset", dataset, "--base-model", "demo-base", "--show")

    # Twenty rows, eight a step: three steps an epoch, or two where a fifth is held out.
    assert json.loads(shown(max_steps=3000).stdout)["hyperparameters"]["max_steps"] == 3000
    assert "max_steps 3001 has no counterpart" in shown(max_steps=3001).stderr
    assert "max_steps 2001 has no counterpart" in shown(max_steps=2001, val_size=0.2).stderr


def test_ppo_becomes_reinforcement_learning_where_a_reward_model_is_named() -> None:
    config = given(stage="ppo", reward_model="saves/reward", cutoff_len=512, max_new_tokens=128, top_k=0, ppo_epochs=4)
    with pytest.raises(Failure, match="stage ppo") as refused:
        body_of(config)
    assert "--reward-model" in str(refused.value.hint)
    body = body_of(config, "judge")
    job = JobCreate.model_validate(body | {"base_model": "a", "dataset": "ds_b"})
    assert (job.stage, body["hyperparameters"]["reward"]) == ("rl", [{"type": "model", "model": "judge"}])
    asked = {"max_length": 640, "max_new_tokens": 128, "temperature": 0.95, "batch_size": 8}
    assert asked.items() <= body["hyperparameters"].items()
    with pytest.raises(Failure, match=r"top_p: 0\.9"):
        body_of(config | {"top_p": 0.9}, "judge")
    assert not {"temperature", "max_new_tokens", "reward"} & body_of(given(max_new_tokens=8))["hyperparameters"].keys()


def test_when_it_validates_and_what_follows_from_it() -> None:
    config = given(
        val_size=0.1, eval_strategy="steps", eval_steps=50, load_best_model_at_end=True, early_stopping_steps=3
    )
    expected = {"fraction": 0.1, "every": 50, "keep": "best", "patience": 3}
    assert body_of(config)["validation"] == expected
    assert body_of(given(val_size=0.1, eval_strategy="epoch"))["validation"] == {"fraction": 0.1}
    last = body_of(given(val_size=0.1, eval_strategy="epoch", early_stopping_steps=3))["validation"]
    assert last == {"fraction": 0.1, "patience": 3, "keep": "last"}
    with pytest.raises(Failure, match=r"eval_steps 0\.1"):
        body_of(given(val_size=0.1, eval_strategy="steps", eval_steps=0.1))


def test_what_the_service_does_not_have_is_named(run: Run, dataset: str, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(given(model_name_or_path="nobody/nothing")))
    assert "No model is registered from 'nobody/nothing'" in run("jobs", "from-llamafactory", config).stderr
    config.write_text(yaml.safe_dump(given(model_name_or_path=str(DEMO_BASE), dataset="none-of-this-name")))
    assert "no dataset called 'none-of-this-name'" in run("jobs", "from-llamafactory", config).stderr
    named = run("jobs", "from-llamafactory", config, "--dataset", dataset, "--show")
    assert json.loads(named.stdout)["dataset"] == dataset
    config.write_text(yaml.safe_dump(given(model_name_or_path="nobody/nothing", eval_dataset="none-of-this-name")))
    named = run("jobs", "from-llamafactory", config, "--dataset", dataset, "--base-model", "demo-base", "--show")
    assert "no dataset called 'none-of-this-name'" in named.stderr
    config.write_text("- a list")
    assert "a YAML mapping" in run("jobs", "from-llamafactory", config).stderr
