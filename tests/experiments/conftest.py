"""What the tests of the laboratory share."""

import io
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures of one pixel. Drawing a page takes longer than the small trainings that it shows."""
    pixel = io.BytesIO()
    Image.new("L", (1, 1)).save(pixel, "PNG")
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).write_bytes(pixel.getvalue())
    )
