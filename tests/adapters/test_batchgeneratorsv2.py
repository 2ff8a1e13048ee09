"""Random shading among the transforms of nnU-Net."""

import numpy as np
import pytest
import torch

pytest.importorskip("batchgeneratorsv2", reason="an optional library: pip install batchgeneratorsv2")

from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from policy_noise.adapters.batchgeneratorsv2 import RandomShadingTransform


@pytest.mark.parametrize("shape", [(2, 12, 10), (1, 8, 12, 10)])
def test_the_image_changes_and_nothing_else_and_numpys_seed_repeats_it(shape):
    transform = ComposeTransforms([RandomTransform(RandomShadingTransform(grid_size=3), apply_probability=1.0)])
    image, labels = torch.randn(shape), torch.ones(shape, dtype=torch.int16)

    def run():
        np.random.seed(3)  # noqa: NPY002
        return transform(image=image.clone(), segmentation=labels.clone(), regression_target=image.clone())

    first, again = run(), run()
    assert torch.equal(first["image"], again["image"])
    assert (first["image"].dtype, first["image"].shape) == (torch.float32, shape)
    assert not torch.equal(first["image"], image)
    assert torch.equal(first["segmentation"], labels)
    assert torch.equal(first["regression_target"], image)
    assert not torch.equal(transform(image=image.clone())["image"], first["image"])


def test_it_masks_as_often_as_the_transform_around_it_says():
    transform = RandomTransform(RandomShadingTransform(), apply_probability=0.2)
    image = torch.randn(1, 8, 8)
    changed = sum(not torch.equal(transform(image=image)["image"], image) for _ in range(300))
    assert changed / 300 == pytest.approx(0.2, abs=0.1)
