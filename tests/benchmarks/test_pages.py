"""The benchmarks' pages: their links and their commands."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from benchmarks.overhead.suites import KERNELS, PEERS
from benchmarks.overhead.suites import SUITES as OVERHEAD_SUITES
from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.suites import SUITES
from benchmarks.study.tasks import TASKS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PAGES = sorted(BENCHMARKS.rglob("*.md"))
ROUNDS = sorted((BENCHMARKS / "study" / "rounds").glob("*.md"))


def commands(page: Path) -> list[str]:
    """Lines of a page's code blocks, continued ones as one, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [line.partition("  #")[0].strip() for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(BENCHMARKS)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_index_leads_to_every_page():
    found, waiting = set(), [BENCHMARKS / "README.md"]
    while waiting:
        page = waiting.pop()
        found.add(page)
        links = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text())}
        waiting += (links & set(PAGES)) - found
    assert found == set(PAGES)


def test_every_suite_of_the_study_is_run_on_a_page_and_every_name_there_is_declared():
    run = set()
    for page in ROUNDS:
        for command in commands(page):
            words = shlex.split(command) if command.startswith("python -m benchmarks.study") else []
            options = dict(itertools.pairwise(words))
            if words[3:4] == ["run"]:
                run.add(options["--suite"])
                assert set(options.get("--conditions", "plain").split(",")) <= CONDITIONS.keys(), page
            assert set(options.get("--tasks", "organs").split(",")) <= TASKS.keys(), page
    assert run == SUITES.keys() - {"smoke"}


def test_commands_of_the_overhead_page_name_its_suites():
    named = re.findall(r"--suite (\S+)", "\n".join(commands(BENCHMARKS / "overhead" / "README.md")))
    assert set(named) == ({*OVERHEAD_SUITES, PEERS, KERNELS}) - {"quick"}
