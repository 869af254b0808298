"""Random files and command lines: each is read, or refused in one line, without a traceback.

KAE_FUZZ is the number of cases of each kind; docs/faults.md has what 100,000 found.
"""

import os
import runpy
from pathlib import Path

import keras  # noqa: F401 - torch cannot be imported first by what runpy runs
import pytest

SCRIPT = runpy.run_path(Path(__file__).parents[1] / "benchmarks" / "fuzz.py")
CASES = int(os.environ.get("KAE_FUZZ", 25))
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """Its folder becomes the one that this process works in, for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("KAE_DATA_DIR", "KAE_CACHE", "http_proxy", "https_proxy"):
            patch.setenv(name, "")
        patch.chdir(".")
        yield SCRIPT["Fuzz"](tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", SCRIPT["SHARES"])
def test_random_input_is_read_or_refused_in_one_line(fuzz, kind):
    for seed in range(CASES):
        found = fuzz.finding(kind, seed)
        assert not found, f"--kind {kind} --cases 1 --seed {seed}: {found}"


def test_a_case_is_the_same_again(fuzz):
    """So that the seed of a finding tells it."""
    draws = [SCRIPT["command_line"](SCRIPT["random"].Random("command 3")) for _ in range(2)]
    assert draws[0] == draws[1]
