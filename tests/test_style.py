"""The code is formatted, linted and typed, and imports downwards only."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "ruff check": ["ruff", "check", "."],
    "ruff format": ["ruff", "format", "--check", "."],
    "import-linter": ["lint-imports"],
    "mypy": ["mypy"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_style(name):
    program, *arguments = COMMANDS[name]
    command = [str(Path(sys.executable).parent / program), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_with_hashes_is_that_of_the_constraints():
    def pinned(name):
        lines = (ROOT / name).read_text().splitlines()
        names = (line.partition(" ")[0] for line in lines if "==" in line and line[0] not in "# ")
        return {name.lower().replace("_", "-").replace(".", "-") for name in names}

    text = (ROOT / "constraints-hashes.txt").read_text()
    assert pinned("constraints.txt") <= pinned("constraints-hashes.txt")
    assert "://" not in text and text.count("--hash=sha256:") > len(
        pinned("constraints-hashes.txt")
    )
