"""What PyPI shows: the README, with links that lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
absolute = runpy.run_path(str(ROOT / ".ci/absolute_links.py"))["absolute"]


def test_the_readme_for_pypi_has_no_relative_link():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", absolute(readme, "owner/name", "v1.2.3")):
        if "github.com/owner/name/" in target:
            kind, path = re.fullmatch(r"https://github\.com/owner/name/(raw|blob)/v1\.2\.3/(.+)", target).groups()
            assert kind == ("raw" if image else "blob")
            assert (ROOT / path.split("#")[0]).is_file()
        else:
            assert target.startswith("https://")


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("[a](docs/a.md#b)", "[a](https://github.com/o/n/blob/v1/docs/a.md#b)"),
        ("![a](a.png)", "![a](https://github.com/o/n/raw/v1/a.png)"),
        ("[![a](a.svg)](a.md)", "[![a](https://github.com/o/n/raw/v1/a.svg)](https://github.com/o/n/blob/v1/a.md)"),
        ("[two\nlines](a.md)", "[two\nlines](https://github.com/o/n/blob/v1/a.md)"),
        ("[a](https://b.c/d) [e](#f) [g](mailto:h@i.j)", "[a](https://b.c/d) [e](#f) [g](mailto:h@i.j)"),
        ("`hooks[0](images)`", "`hooks[0](images)`"),
        (
            "```python\nhooks[0](images)\n```\n[a](b)",
            "```python\nhooks[0](images)\n```\n[a](https://github.com/o/n/blob/v1/b)",
        ),
    ],
)
def test_links_become_absolute(page, expected):
    assert absolute(page, "o/n", "v1") == expected
