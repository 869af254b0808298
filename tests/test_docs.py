"""The documentation: no page too long, no link that leads nowhere, every page in the site, and the site builds."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MARKDOWN = sorted([*ROOT.glob("*.md"), *ROOT.glob("checkpoints/**/*.md"), *DOCS.rglob("*.md")])
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(path):
    """The prose of a page or of a notebook, without its programs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors_of(path):
    """What a link into a page can name: its headings as mkdocs and the common hosts spell them."""
    for line in text_of(path).splitlines():
        if line.startswith("#"):
            plain = re.sub(r"[^\w\- ]", "", line.lstrip("#").strip().lower())
            yield plain.replace(" ", "-")


@pytest.mark.parametrize("path", [*MARKDOWN, *NOTEBOOKS], ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for link in LINK.findall(text_of(path)):
        place, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (path.parent / place).resolve() if place else path
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in set(anchors_of(target)), f"{link}: {target.name} has no such heading"


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: path.name)
def test_no_page_is_longer_than_150_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_is_short_and_begins_with_the_two_lines_that_ci_reads():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 120
    lines = readme.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert len(lines) == 2 and lines[0].endswith("kae fit vae") and lines[1].endswith("-m pytest")


def test_every_page_is_in_the_site_and_linked_from_its_first_page():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    linked = LINK.findall(text_of(DOCS / "index.md")) + LINK.findall(text_of(DOCS / "course.md"))
    for path in [*DOCS.rglob("*.md"), *NOTEBOOKS]:
        name = path.relative_to(DOCS).as_posix()
        assert f": {name}\n" in nav + "\n", f"{name} is not in mkdocs.yml"
        assert name in linked or name == "index.md", f"nothing leads to {name}"


@pytest.mark.long
@pytest.mark.skipif(
    not importlib.util.find_spec("mkdocs_jupyter"), reason="needs pip install '.[docs]'"
)
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "index.html").is_file()
    assert "KLAnnealing" in (tmp_path / "api" / "models" / "index.html").read_text()
    assert "posterior" in (tmp_path / "search" / "search_index.json").read_text()


COLLECT = """
import pytest
class Plugin:
    def pytest_collection_modifyitems(self, items):
        for item in items:
            print("\\nlong" if item.get_closest_marker("long") else "\\nshort", item.nodeid)
pytest.main(["--collect-only", "-qq", "-o", "addopts="], plugins=[Plugin()])
"""


@pytest.mark.long
def test_every_pytest_command_in_the_pages_selects_tests():
    """Each word of its -k does, among the tests of its files; without -m "", those that are not long."""
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    marked = [line.partition(" ") for line in done.stdout.splitlines() if "::" in line]
    there = {"": [name for _, _, name in marked]}
    there["not long"] = [name for mark, _, name in marked if mark == "short"]
    missing = []
    for page in MARKDOWN:
        for command in re.findall(r"`(pytest [^`]*)`", text_of(page)):
            words = shlex.split(command)
            tests = there["" if "-m" in words else "not long"]
            files = [word for word in words if word.startswith("tests")]
            terms = re.split(r"\s+or\s+", words[words.index("-k") + 1]) if "-k" in words else [""]
            for term in terms:
                if not any(
                    term.lower() in test.lower()
                    for test in tests
                    if not files or test.startswith(tuple(files))
                ):
                    missing.append(f"{page.name}: {' '.join(words)}: {term}")
    assert not missing, "\n".join(missing)
