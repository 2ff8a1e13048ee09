"""Self-contained HTML pages, which open without a network, and tables in HTML and Markdown."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .runs import write_atomic

__all__ = ["details_html", "image_html", "table_html", "table_markdown", "write_page"]

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 1120px;
  padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; border-bottom: 1px solid #ddd; }
p.lead { color: #666; margin: 0 0 16px; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 8px 0 16px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid #eee; vertical-align: top; }
th { font-weight: 600; border-bottom-color: #bbb; } td + td, th + th { white-space: nowrap; }
.prose td + td, .prose th + th { white-space: normal; }
img { max-width: 100%; height: auto; display: block; margin: 12px 0; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: 8px 16px; min-width: 110px; }
.card b { display: block; font-size: 22px; } .card span { color: #666; font-size: 13px; }
details { margin: 8px 0; } summary { cursor: pointer; color: #0072b2; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""


def table_html(header: Sequence[str], rows: Sequence[Sequence[str]], *, prose: bool = False) -> str:
    """An HTML table of texts. A table that is too wide scrolls on its own; if it holds ``prose``, its lines wrap."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    kind = "scroll prose" if prose else "scroll"
    return f'<div class="{kind}"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def table_markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table, of which the first columns are texts and the others numbers."""
    marks = ["---"] * texts + ["---:"] * (len(header) - texts)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, marks, *rows))


def image_html(path: Path, alt: str | None = None) -> str:
    """A PNG embedded in the page. Its alternative text is the file's name by default."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(alt or path.stem)}" src="data:image/png;base64,{data}">'


def details_html(shown: Mapping[str, Any]) -> list[str]:
    """Values as JSON, each folded under its heading."""
    texts = {heading: html.escape(json.dumps(value, indent=2)) for heading, value in shown.items()}
    return [f"<details><summary>{heading}</summary><pre>{text}</pre></details>" for heading, text in texts.items()]


def write_page(path: Path, title: str, body: Sequence[str]) -> None:
    """Write a page of parts in HTML, atomically."""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body>{''.join(body)}</body></html>"
    )
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8", errors="replace"))
