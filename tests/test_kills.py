"""A real process, killed at random moments and resumed: what is left is the run left alone."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "kills.py"
KILLS = 10
pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("backend", "processes"), [("torch", 1), ("torch", 2), ("jax", 1), ("tensorflow", 1)]
)
def test_a_run_that_is_killed_at_random_moments_is_the_run_left_alone(
    backend, processes, mnist_dir, shared_tmp
):
    """`kills.py` compares weights, history and pictures bit for bit, and loads the model after each kill."""
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed")
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "KAE_DATA_DIR": str(mnist_dir),
        "KAE_CACHE": str(shared_tmp / "cache"),
        "TF_NUM_INTRAOP_THREADS": "1",
        "TF_NUM_INTEROP_THREADS": "1",
    }
    command = [sys.executable, SCRIPT, "--kills", str(KILLS), "--signals", "KILL,KILL,KILL,TERM"]
    command += ["--processes", str(processes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads(done.stdout)
    assert facts["kills"] == KILLS and facts["identical_runs"] == facts["runs"] >= 1
    assert facts["steps_lost"]["most"] < facts["steps_of_the_run"] / 2
