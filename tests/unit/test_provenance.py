"""A run's record is enough to run it again."""

import subprocess
from pathlib import Path

from safe_sail.provenance import finish_run, start_run
from safe_sail.settings import DemoSettings


def test_run_keeps_settings_seed_and_versions():
    run = start_run("demo", settings=DemoSettings(n_features=3), seed=7, device="cpu")
    assert run.settings["n_features"] == 3
    assert run.seed == 7
    assert run.versions["torch"].startswith("2.")
    assert run.finished is None


def test_run_names_the_commit_of_the_checkout():
    run = start_run("demo", settings={}, seed=0, device="cpu")
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    expected = done.stdout.strip() or None
    assert (run.git_commit or "").removesuffix("+changes") == (expected or "")


def test_two_runs_have_two_ids_and_a_finished_run_keeps_its_own():
    first, second = (start_run("demo", settings={}, seed=0, device="cpu") for _ in range(2))
    assert first.run_id != second.run_id
    done = finish_run(first)
    assert done.run_id == first.run_id
    assert done.finished is not None
    assert done.finished >= done.started
