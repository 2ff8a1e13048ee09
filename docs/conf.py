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

myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
# The notebook's outputs are those that were committed; a test executes it.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_mock_imports = ["lightning", "transformers", "ignite", "fastai", "monai", "torchio", "batchgeneratorsv2"]
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
html_css_files = ["tables.css"]

OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)#]+\.md)\)")
"""Links to Markdown files that are no page of the site: result pages and READMEs."""


def link_as_download(app: Any, docname: str, source: list[str]) -> None:
    """Make links out of docs/, which work in the repository, work in the site: the notebook's page, or the file."""
    source[0] = source[0].replace("](../examples/tutorial.ipynb)", "](tutorial.ipynb)")
    source[0] = OUTSIDE.sub(r"{download}`\1 <\2>`", source[0])


def shapes_without_bullets(app: Any, kind: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Give napoleon the entries of ``Shape:``, which are written as a list, like those of ``Args:``."""
    inside = False
    for number, line in enumerate(lines):
        inside = line.strip() == "Shape:" or (inside and (line.startswith(" ") or not line))
        if inside:
            lines[number] = re.sub(r"^(\s+)- ", r"\1", line)


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_as_download)
    app.connect("autodoc-process-docstring", shapes_without_bullets, priority=400)  # before napoleon
