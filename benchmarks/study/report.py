"""The results page, and the tables and the picture of the evidence page."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results" / "runs.jsonl"


def write_pages() -> None:
    """Write them."""
