"""Pictures are drawn from the given data, and do not change the random state."""

import dataclasses
import errno

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.evaluation import score
from policy_noise.experiments.figures import confusion_matrix, few_shot_curves, picture, training_diagnostics
from policy_noise.experiments.recipes import RECIPES
from policy_noise.experiments.run_page import write_report
from policy_noise.experiments.runs import write_json
from policy_noise.experiments.statistics import Interval


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_diagnostics_draw_every_method(tmp_path):
    def log(offset):
        return [{"epoch": step / 4, "loss": offset - step / 10, "reward": step} for step in range(8)]

    training_diagnostics({"plain": [log(2)]}, tmp_path / "one.png", {"loss": "loss"})
    training_diagnostics({"plain": [log(2)], "learned": [log(3), log(4)[:5]]}, tmp_path / "two.png", {"loss": "loss"})
    blue = np.array([0, 114, 178])  # the policy's colour
    found = [(np.abs(pixels(tmp_path / name).astype(int) - blue).sum(-1) < 20).sum() for name in ("one.png", "two.png")]
    assert found[0] == 0
    assert found[1] > 200


def test_diagnostics_mark_where_masks_end(tmp_path):
    masked = [{"epoch": epoch, "loss": 1.0, "reward": 1.0} for epoch in range(8)]
    ended = [*masked[:4], *({"epoch": epoch, "loss": 1.0} for epoch in range(4, 8))]
    dark = []
    for log in (masked, ended):
        training_diagnostics({"learned": [log]}, tmp_path / "one.png", {"loss": "loss"})
        middle = pixels(tmp_path / "one.png")[100:-100]
        dark.append((middle.max(-1) < 150).any(1).sum())
    assert dark[1] > dark[0]


NAMES = ["a $b$ c", "$", "<b>", "_under", r"\frac", "x^$2", "bad \udcff byte"]


def test_names_are_drawn_as_they_stand(tmp_path, recwarn):
    """Dollar signs are not parsed as mathematics, which would stop the run at its first picture."""
    confusion_matrix(np.eye(7), NAMES, tmp_path / "confusion.png")
    few_shot_curves({"$x^$": {name: {8: Interval(0.5, 0.4, 0.6)} for name in NAMES}}, tmp_path / "f.png", metric="F1")
    training_diagnostics({name: [[{"epoch": 1, "loss": 1.0}]] for name in NAMES}, tmp_path / "t.png", {"loss": "loss"})


@pytest.mark.parametrize("kind", ["few_shot", "training"])
def test_legend_and_curves_of_own_labels_have_the_same_colours(tmp_path, monkeypatch, kind):
    from matplotlib.figure import Figure

    seen = {}

    def keep(self, path, **_):
        seen["figure"] = self
        path.touch()

    monkeypatch.setattr(Figure, "savefig", keep)
    labels = ["learned", *(f"own {i}" for i in range(7))]
    if kind == "few_shot":
        points = {8: Interval(0.5, 0.4, 0.6), 16: Interval(0.6, 0.5, 0.7)}
        few_shot_curves({"set": dict.fromkeys(labels, points)}, tmp_path / "one.png", metric="macro F1")
    else:
        log = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
        training_diagnostics({label: [log] for label in labels}, tmp_path / "one.png", {"loss": "loss"})
    figure = seen["figure"]
    lines = [line for line in figure.axes[0].lines if line.get_linestyle() == "-" and line.get_alpha() is None]
    lines = [line for line in lines if len(line.get_xdata()) > 1]
    legend = [handle.get_color() for handle in figure.legends[0].legend_handles]
    assert [line.get_color() for line in lines] == legend
    assert len(set(legend)) == 8


@pytest.mark.parametrize("classes", [30, 31])
def test_the_confusion_matrix_of_many_classes_is_not_drawn(tmp_path, classes):
    split = Split(np.zeros((classes, 4, 4), np.uint8), np.arange(classes))
    data = ImageSet("set", split, split, split, tuple(map(str, range(classes))), {})
    scores = score(data, np.arange(classes), np.eye(classes), model="model.safetensors")
    recipe = dataclasses.asdict(RECIPES["small"]["pretrain"])
    write_json(tmp_path / "scores.json", scores)
    write_json(tmp_path / "recipe.json", {"stage": "pretrain", "data": {"name": "set"}, "recipe": recipe})
    page = write_report(tmp_path).read_text()
    assert ('alt="confusion-scores"' in page) == (classes == 30)
    assert len(scores["confusion"]) == classes


def test_confusion_and_curves(tmp_path):
    confusion_matrix([[9, 1], [0, 10]], ["a", "b"], tmp_path / "one.png")
    confusion_matrix([[10, 0], [0, 10]], ["a", "b"], tmp_path / "two.png")
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))
    nothing_known = Interval(0.5, float("nan"), float("nan"))
    table = {"set": {"policy": {8: Interval(0.5, 0.4, 0.6), 16: nothing_known}, "other": {8: nothing_known}}}
    few_shot_curves(table, tmp_path / "curves.png", metric="macro F1")
    assert pixels(tmp_path / "curves.png").std() > 5


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "classes.png"
    path.write_bytes(b"old")
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: (_ for _ in ()).throw(full))
    with (
        pytest.raises(OSError, match=r"No space left on device, nothing was changed: .*classes\.png"),
        picture(path, 1, 1),
    ):
        pass
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
