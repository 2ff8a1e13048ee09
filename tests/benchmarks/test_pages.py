"""The benchmarks' pages: their links and their commands."""

import re
from pathlib import Path

import pytest

from benchmarks.overhead.suites import PEERS
from benchmarks.overhead.suites import SUITES as OVERHEAD_SUITES

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PAGES = sorted(BENCHMARKS.rglob("*.md"))


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


def test_commands_of_the_overhead_page_name_its_suites():
    named = re.findall(r"--suite (\S+)", "\n".join(commands(BENCHMARKS / "overhead" / "README.md")))
    assert set(named) == ({*OVERHEAD_SUITES, PEERS}) - {"quick"}
