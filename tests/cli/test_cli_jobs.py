"""burnish jobs: all but watching."""

from __future__ import annotations

import json
from pathlib import Path

from app.jobs import attempts, checkpoints, logs
from app.kit.database import writing
from tests.cli.conftest import Run
from tests.cli.terminal import table
from tests.cli.work import claim, compare, succeed, train

OPTIONS = {
    "--name": "mine",
    "--rank": 4,
    "--epochs": 1.5,
    "--max-steps": 7,
    "--learning-rate": 0.002,
    "--batch-size": 2,
    "--max-length": 64,
    "--validation-fraction": 0.1,
    "--deploy": "none",
    "--seed": 7,
}


def test_base_and_dataset_are_enough(run: Run, dataset: str) -> None:
    created = run("jobs", "create", "demo-base", dataset, "--no-watch")
    assert created.exit_code == 0, created.output
    (made,) = table(created.stdout)
    assert (made["id"][:4], made["status"]) == ("job_", "queued")
    assert f"burnish jobs watch {made['id']}" in created.stderr


def test_a_dry_run_says_what_it_would_take_and_starts_nothing(run: Run, dataset: str) -> None:
    before = run("jobs", "list").stdout
    told = run("jobs", "create", "demo-base", dataset, "--dry-run")
    assert told.exit_code == 0, told.output
    lines = dict(line.split("\t", 1) for line in told.stdout.splitlines())
    assert (lines["steps"], lines["memory.device"]) == ("6", "cpu")
    plan = json.loads(run("jobs", "create", "demo-base", dataset, "--dry-run", "--json").stdout)
    assert (plan["object"], plan["steps"]) == ("job.estimate", 6)
    assert run("jobs", "list").stdout == before


def test_options_reach_the_fields_they_name(run: Run, dataset: str) -> None:
    options = [word for pair in OPTIONS.items() for word in pair]
    job = json.loads(run("jobs", "create", "demo-base", dataset, *options, "--json").stdout)
    asked = job["hyperparameters"]
    assert (job["name"], job["method"]["rank"], job["deploy"]["mode"]) == ("mine", 4, "none")
    assert (asked["epochs"], asked["max_steps"], asked["learning_rate"]) == (1.5, 7, 0.002)
    assert (asked["batch_size"], asked["max_length"], asked["seed"]) == (2, 64, 7)
    assert job["validation"]["fraction"] == 0.1


def test_what_is_watched_mixed_in_and_measured_can_be_said(run: Run, dataset: str) -> None:
    options = {
        "--validation": dataset, "--validate-every": 5, "--patience": 2, "--replay": dataset, "--replay-fraction": 0.2,
        "--memory-gb": 0.5, "--gpus": 0, "--variant": "rslora", "--template-argument": "tone=dry",
    }  # fmt: skip
    words = [word for pair in options.items() for word in pair]
    job = json.loads(run("jobs", "create", "demo-base", dataset, *words, "--no-scorecard", "--json").stdout)
    expected = {"dataset": dataset, "fraction": None, "seed": None, "every": 5, "patience": 2, "keep": "best"}
    assert job["validation"] == expected
    assert (job["replay"], job["check"]["scorecard"]) == ({"dataset": dataset, "fraction": 0.2}, False)
    assert (job["resources"], job["method"]["variant"]) == ({"gpus": 0, "memory_gb": 0.5}, "rslora")
    assert job["template_arguments"] == {"tone": "dry"}
    assert "validation.every" in run("jobs", "create", "demo-base", dataset, "--validate-every", "now").stderr
    kept = (
        "--validation-fraction",
        0.1,
        "--keep",
        "best",
        "--validate-every",
        "epoch",
        "--method",
        "freeze",
        "--layers",
        1,
    )
    job = json.loads(run("jobs", "create", "demo-base", dataset, *kept, "--json").stdout)
    assert (job["validation"]["keep"], job["validation"]["every"], job["method"]["layers"]) == ("best", "epoch", 1)


def test_rewards_are_named(run: Run, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{i}?", "reference": str(i)}) + "\n" for i in range(4)))
    id = json.loads(run("datasets", "add", prompts, "--json").stdout)["id"]
    rewards = ("--reward", "exact_match", "--reward", "json_valid")
    job = json.loads(run("jobs", "create", "demo-base", id, "--stage", "rl", *rewards, "--json").stdout)
    assert [each["type"] for each in job["hyperparameters"]["reward"]] == ["exact_match", "json_valid"]


def test_options_go_over_a_spec_file(run: Run, dataset: str, tmp_path: Path) -> None:
    spec = tmp_path / "job.json"
    spec.write_text(json.dumps({"base_model": "demo-base", "dataset": dataset, "method": {"rank": 2, "alpha": 3}}))
    job = json.loads(run("jobs", "create", "--spec", spec, "--rank", 16, "--json").stdout)
    assert (job["method"]["rank"], job["method"]["alpha"]) == (16, 3)


def test_all_refusals_are_printed(run: Run, dataset: str) -> None:
    refused = run("jobs", "create", "demo-base", dataset, "--batch-size", 0, "--seed", -1)
    assert refused.exit_code == 1
    fields = [line for line in refused.stderr.splitlines() if line.startswith("Field: ")]
    assert fields == ["Field: hyperparameters.batch_size", "Field: hyperparameters.seed"]
    assert refused.stderr.count("has a wrong value") == refused.stderr.count("Hint: ") == 2


def test_a_refusal_names_the_field_and_what_to_do(run: Run, dataset: str) -> None:
    refused = run("jobs", "create", "nobody", dataset)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.splitlines()[0] == "The base model 'nobody' is not registered."
    assert "Field: base_model" in refused.stderr
    assert "Hint: Register it" in refused.stderr


def test_the_service_judges_a_learning_rate(run: Run, dataset: str) -> None:
    refused = run("jobs", "create", "demo-base", dataset, "--learning-rate", "fast")
    assert "hyperparameters.learning_rate" in refused.stderr
    assert run("jobs", "create", "demo-base", dataset, "--learning-rate", "auto", "--no-watch").exit_code == 0


def test_a_list_is_filtered_by_status(run: Run, job: str) -> None:
    assert job in run("jobs", "list", "--status", "queued").stdout
    assert job not in run("jobs", "list", "--status", "failed").stdout
    assert "status" in run("jobs", "list", "--status", "odd").stderr


def test_a_job_is_shown_with_its_defaults(run: Run, job: str) -> None:
    shown = dict(line.split("\t") for line in run("jobs", "show", job).stdout.splitlines())
    assert (shown["status"], shown["method.rank"], shown["hyperparameters.batch_size"]) == ("queued", "8", "16")
    assert json.loads(run("jobs", "show", job, "--json").stdout)["id"] == job


def test_events_and_metrics_are_printed_whole(run: Run, job: str) -> None:
    running = claim(job)
    train(running, 1)
    train(running, 2)
    succeed(running)
    told = [json.loads(line)["type"] for line in run("jobs", "events", job, "--json").stdout.splitlines()]
    assert told[:2] == ["created", "started"]
    assert told[-1] == "succeeded"
    assert [each["type"] for each in table(run("jobs", "events", job).stdout)] == told
    assert [each["step"] for each in table(run("jobs", "metrics", job).stdout)] == ["1", "2"]
    assert [row["loss"] for row in json.loads(run("jobs", "metrics", job, "--json").stdout)["data"]] == [2.0, 1.0]


def test_a_log_is_printed_whole_and_followed_to_the_end(run: Run, job: str) -> None:
    running = claim(job)
    for text in ("one\n", "\x1b[2Jtwo ü\n"):
        with writing() as session:
            logs.add(session, attempts.hold(session, running), text)
    assert run("jobs", "logs", job).stdout == "one\n�[2Jtwo ü\n"
    succeed(running)
    assert run("jobs", "logs", job, "--follow").stdout == "one\n�[2Jtwo ü\n"
    assert "does not exist" in run("jobs", "logs", "job_none").stderr


def test_a_queued_job_is_cancelled(run: Run, job: str) -> None:
    assert json.loads(run("jobs", "cancel", job, "--json").stdout)["status"] == "cancelled"
    assert ": cancelled." in run("jobs", "cancel", job).stderr


def test_a_job_is_paused_goes_on_is_cancelled_and_deleted(run: Run, job: str) -> None:
    assert run("jobs", "pause", job).stderr.endswith(f" ({job}): paused.\n")
    assert run("jobs", "resume", job).stderr.endswith(": queued.\n")
    running = claim(job)
    assert "asked to pause" in run("jobs", "pause", job).stderr
    assert "asked to stop" in run("jobs", "cancel", job).stderr
    with writing() as session:
        attempts.cancelled(session, attempts.hold(session, running))
    refused = run("jobs", "retry", job)
    assert refused.exit_code == 1
    assert "must be failed" in refused.stderr
    deleted = run("jobs", "delete", job)
    assert (deleted.exit_code, deleted.stdout) == (0, "")
    assert deleted.stderr.startswith("Deleted job demo-base-")
    assert deleted.stderr.endswith(f" ({job}).\n")
    assert "does not exist" in run("jobs", "show", job).stderr


def test_the_scorecard_is_shown_plainly(run: Run, job: str) -> None:
    assert json.loads(run("jobs", "show", job, "--json").stdout)["scorecard"] is None
    compare(claim(job))
    shown = run("jobs", "show", job).stdout.splitlines()
    assert "scorecard.held-out loss\t2.500 → 0.500" in shown
    assert "scorecard.exact answers\t0.0% → 75.0%" in shown
    assert not [line for line in shown if "rewards" in line]
    card = json.loads(run("jobs", "show", job, "--json").stdout)["scorecard"]
    assert (card["tuned"]["accuracy"], card["prompts"]) == (0.75, 16)
    (told,) = [line for line in run("jobs", "events", job).stdout.splitlines() if "scorecard" in line]
    assert told.endswith(
        "Base → fine-tune: held-out loss 2.500 → 0.500, exact answers 0.0% → 75.0%, answers that end 12.5% → 100.0%, "
        "answers that repeat themselves 50.0% → 0.0%, loss on general text 3.000 → 3.125."
    )


def test_checkpoints_are_listed(run: Run, job: str) -> None:
    running = claim(job)
    with writing() as session:
        checkpoints.add(session, attempts.hold(session, running), 7, size=9, validation_loss=1.25)
    (kept,) = table(run("jobs", "checkpoints", job).stdout)
    assert [kept[name] for name in ("attempt", "step", "validation_loss", "bytes")] == ["1", "7", "1.25", "9"]
    assert json.loads(run("jobs", "checkpoints", job, "--json").stdout)["data"][0]["models"] == []
