"""Random shading among Albumentations' transforms."""

import numpy as np
import pytest

A = pytest.importorskip("albumentations", "2", reason="an optional library: pip install albumentations")

from policy_noise.adapters.albumentations import RandomShading  # noqa: E402

UNIT = {"mean": 0.0, "std": 1.0}
RANDOM = np.random.default_rng(1)
FLOATS = RANDOM.random((20, 24, 3), dtype=np.float32)


@pytest.mark.parametrize(
    "image",
    [FLOATS, (255 * FLOATS).astype(np.uint8), FLOATS[..., 0], FLOATS[..., :1]],
    ids=["float", "bytes", "grey", "one"],
)
def test_the_image_keeps_shape_and_dtype_and_repeats_with_composes_seed(image):
    results = []
    for seed in (3, 3, 4):
        transform = A.Compose([RandomShading(p=1.0, **UNIT)], seed=seed)
        results.append(transform(image=image)["image"])
    first, again, other = results
    assert (first.dtype, first.shape) == (image.dtype, image.shape)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, image)


def test_masks_boxes_and_points_stay():
    boxes, points = np.array([[1.0, 2, 5, 9]]), np.array([[3.0, 4]])
    transform = A.Compose(
        [RandomShading(p=1.0, **UNIT)],
        bbox_params=A.BboxParams("pascal_voc", label_fields=["labels"]),
        keypoint_params=A.KeypointParams("xy"),
    )
    mask = (FLOATS[..., 0] > 0.5).astype(np.uint8)
    result = transform(image=FLOATS, mask=mask, bboxes=boxes, labels=[1], keypoints=points)
    assert not np.array_equal(result["image"], FLOATS)
    assert np.array_equal(result["mask"], mask)
    np.testing.assert_allclose(result["bboxes"], boxes, rtol=1e-6)
    np.testing.assert_allclose(result["keypoints"], points)


def test_images_of_a_call_share_a_mask_and_a_volume_has_three_axes():
    frames = np.full((4, 16, 16, 3), 0.5, np.float32)
    shaded = A.Compose([RandomShading(p=1.0, **UNIT)])(images=frames)["images"]
    assert len(np.unique(shaded.reshape(4, -1), axis=0)) == 1
    assert not np.array_equal(shaded, frames)
    for volume in (frames, frames[..., 0]):
        shaded = A.Compose([RandomShading(p=1.0, **UNIT)])(volume=volume)["volume"]
        assert shaded.shape == volume.shape
        assert len(np.unique(shaded.reshape(4, -1), axis=0)) > 1


def test_a_second_image_is_masked_as_an_additional_target():
    transform = A.Compose([RandomShading(p=1.0, **UNIT)], additional_targets={"image2": "image"})
    result = transform(image=FLOATS, image2=FLOATS)
    assert not np.array_equal(result["image"], FLOATS)
    assert np.array_equal(result["image"], result["image2"])


def test_a_replay_repeats_the_mask_and_a_saved_transform_its_settings():
    recorded = A.ReplayCompose([RandomShading(p=1.0, grid_size=3, **UNIT)])(image=FLOATS)
    again = A.ReplayCompose.replay(recorded["replay"], image=FLOATS)
    assert np.array_equal(again["image"], recorded["image"])
    loaded = A.from_dict(A.to_dict(A.Compose([RandomShading(p=0.25, grid_size=3, **UNIT)])))
    assert loaded.transforms[0].p == 0.25
    assert loaded.transforms[0].shading.settings == {"p": 1.0, "grid_size": 3, **UNIT}


def test_p_is_albumentations():
    transform = A.Compose([RandomShading(p=0.3, **UNIT)], seed=0)
    changed = sum(not np.array_equal(transform(image=FLOATS)["image"], FLOATS) for _ in range(300))
    assert changed / 300 == pytest.approx(0.3, abs=0.1)
