"""The comparison with other libraries' bias fields."""

import re

import torch

from benchmarks import bias_fields


def test_it_measures_what_a_field_does():
    ramp = torch.linspace(0.5, 1.5, 8).view(-1, 1, 1)
    cells = bias_fields.measure(lambda volume: volume * 1.5, lambda volume: volume * ramp * 2, draws=5, side=8)
    # Black moves from -2 to -3, a quarter of the range. The ramp's standard deviation is 0.33 of its mean.
    assert cells == ["0.250", "0.33 (0.33 to 0.33)", "2.00 (2.00 to 2.00)", "one for all"]


def test_the_table_has_a_row_for_each_and_names_what_is_missing(monkeypatch, capsys):
    def absent():
        raise ImportError("no such library")

    monkeypatch.setitem(bias_fields.FIELDS, "absent", ("torch", absent, absent))
    bias_fields.main(draws=3)
    printed = capsys.readouterr().out
    assert "| RandomShading 0" in printed
    (strength,) = re.findall(r"\| RandomShading 0.* \| 0\.000 \| (0\.\d\d) ", printed)  # black stays
    assert 0 < float(strength) < 0.2  # and the strength is within what was asked for
    assert "- absent: no such library" in printed
