"""Counting the kernels of a compiled mask."""

import json

import torch

from benchmarks.overhead import __main__ as main
from benchmarks.overhead import kernels

CPU = torch.device("cpu")
SOURCE = """
cpp_fused_add_0 = async_compile.cpp_pybinding([], '''...''')
        buf6 = extern_kernels.convolution(buf5, buf0)
        extern_kernels.mm(buf1, out=buf2)
        cpp_fused_add_0(buf6, buf1)
        triton_poi_fused_add_1.run(buf6, stream=stream0)
        buf7 = torch.ops.aten.convolution_backward.default(buf5)
        del buf6
"""


def test_calls_are_counted_and_not_definitions():
    assert len(kernels.FUSED.findall(SOURCE)) == 2
    assert len(kernels.LIBRARY.findall(SOURCE)) == 3


def test_operations_are_those_of_the_mask_and_of_its_policys_gradient():
    learned, augment = (kernels.count_operations(preset, CPU) for preset in kernels.PRESETS)
    assert 15 <= augment <= 18
    assert augment + 40 < learned <= 95


def test_the_page_has_a_row_for_each_preset(tmp_path, monkeypatch, capsys):
    found = {"operations": 9, "graphs": [3] * len(kernels.BATCHES), "fused": 5, "library": 4}
    monkeypatch.setattr(main, "measure_kernels", lambda preset, device: found)
    main.main(["--suite", "kernels", "--output", str(tmp_path)])
    page = (tmp_path / "kernels.md").read_text()
    assert page in capsys.readouterr().out
    for preset in kernels.PRESETS:
        assert f"| {preset} | 9 | 3 | 5 | 4 | 8: 3, " in page
    assert json.loads((tmp_path / "kernels.json").read_text())["kernels"]["learned"] == found
