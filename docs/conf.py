"""Sphinx's configuration. The build needs no network: ``sphinx-build -W docs site``."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from policy_noise.version import __version__

HERE = Path(__file__).resolve().parent
shutil.copyfile(HERE.parent / "examples" / "tutorial.ipynb", HERE / "tutorial.ipynb")

project = "policy_noise"
author = "The policy_noise authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
templates_path: list[str] = []
nitpicky = False

myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# The notebook's outputs are those that were committed; a test executes it.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["lightning", "transformers", "ignite", "monai", "torchio", "batchgeneratorsv2"]
autodoc_mock_imports += ["albumentations"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Shape", "params_style")]

# Fetched only where a network is sure to be there, so that -W passes without one. timm publishes no inventory.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "kornia": ("https://kornia.readthedocs.io/en/latest", None),
        "lightning": ("https://lightning.ai/docs/pytorch/stable", None),
    }
    if os.environ.get("DOCS_ONLINE")
    else {}
)

html_theme = "furo"
html_title = f"policy_noise {__version__}"
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_css_files = ["tables.css"]

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
RESULTS = HERE / "results"
"""Pages of Markdown files from elsewhere in the repository, such as results. Written anew by each build."""


def on_the_site(text: str, source: Path, page: Path, pages: dict[Path, Path]) -> str:
    """Make a page's links, which work in the repository, work on the site.

    Args:
        text: The page.
        source: Where it stands in the repository.
        page: Where Sphinx reads it.
        pages: Files outside docs/ that are pages of the site. Those that this page links to are added.
    """

    def link(match: re.Match[str]) -> str:
        target = (source.parent / match["path"]).resolve()
        if not target.exists():  # code that looks like a link
            return match[0]
        if target.suffix == ".ipynb":
            target = HERE / target.name
        elif target.suffix == ".md" and HERE not in target.parents and target.is_file():
            name = "-".join(target.relative_to(HERE.parent).with_suffix("").parts).lower()
            target = pages.setdefault(target, RESULTS / f"{name}.md")
        path = os.path.relpath(target, page.parent)
        if match["image"] or target.suffix in (".md", ".ipynb"):
            return f"{match['image']}[{match['text']}]({path}{match['anchor'] or ''})"
        return f"{{download}}`{match['text']} <{path}>`" if target.is_file() else match["text"]

    return LINK.sub(link, text)


def write_result_pages() -> None:
    """Write a page for each Markdown file outside docs/ to which the site's pages lead."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir()
    pages: dict[Path, Path] = {}
    for path in HERE.glob("*.md"):
        on_the_site(path.read_text(encoding="utf-8"), path, path, pages)
    written: set[Path] = set()
    while open_pages := pages.keys() - written:
        for source in open_pages:
            text = on_the_site(source.read_text(encoding="utf-8"), source, pages[source], pages)
            pages[source].write_text(f"---\norphan: true\n---\n\n{text}", encoding="utf-8")
        written |= open_pages


write_result_pages()


def links_of_the_site(app: Any, docname: str, source: list[str]) -> None:
    """Links of the pages under docs/ themselves."""
    path = HERE / f"{docname}.md"
    if path.is_file() and path.parent == HERE:
        source[0] = on_the_site(source[0], path, path, {})


def shapes_without_bullets(app: Any, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give napoleon the entries of ``Shape:``, which are written as a list, like those of ``Args:``."""
    inside = False
    for number, line in enumerate(lines):
        inside = line.strip() == "Shape:" or (inside and (line.startswith(" ") or not line))
        if inside:
            lines[number] = re.sub(r"^(\s+)- ", r"\1", line)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", links_of_the_site)
    app.connect("autodoc-process-docstring", shapes_without_bullets, priority=400)  # before napoleon
