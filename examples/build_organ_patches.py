"""Build ``examples/data/organpatches.npz``: organ patches of two CT patients and one MR scan.

The source is the source distribution of ``totalsegmentator`` 2.18.0 (Apache-2.0), whose test files hold the scans and
the labels a segmentation model gave them. Fetch it, build the data set, and measure how hard it is and how much a
random split would leak::

    pip download totalsegmentator==2.18.0 --no-deps --no-binary totalsegmentator
    python examples/build_organ_patches.py --sdist totalsegmentator-2.18.0.tar.gz
    python examples/build_organ_patches.py --check

Reading the scans needs ``pip install policy_noise[data]``; ``--check`` needs scikit-learn and half a minute. Everything
that cuts and splits takes NumPy arrays and needs neither.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import gzip
import hashlib
import io
import math
import os
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

PATCH = 32
SPLITS = ("train", "val", "test")
GAP = 2
SPACING_MM = 3.0
CT_WINDOW_HU = (-160.0, 240.0)
MR_PERCENTILES = (0.5, 99.5)
PACKAGE = "totalsegmentator-2.18.0"
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "data" / "organpatches.npz"

# The one list of organs, in label order, and the patterns of the source's class names that make up each. Left and
# right, and the levels of the spine, are one organ: a patch without its context cannot tell them apart.
ORGANS: dict[str, tuple[str, ...]] = {
    "aorta": ("aorta",),
    "back_muscle": ("autochthon_*",),
    "bladder": ("urinary_bladder",),
    "colon": ("colon",),
    "femur": ("femur_*",),
    "gluteus": ("gluteus_*",),
    "hip": ("hip_*",),
    "iliopsoas": ("iliopsoas_*",),
    "kidney": ("kidney_left", "kidney_right"),
    "liver": ("liver",),
    # The CT label map splits the first sacral vertebra off the sacrum, the MR map does not.
    "sacrum": ("sacrum", "vertebrae_S1"),
    "small_bowel": ("small_bowel",),
    "spleen": ("spleen",),
    "stomach": ("stomach",),
    "vertebra": ("vertebrae", "vertebrae_[CTL]*"),
}


class Recipe(NamedTuple):
    """One task of the data set and where it comes from inside the source distribution."""

    prefix: str
    title: str
    image: str
    labels: str
    label_map: str
    modality: str


# example_ct_sm.nii.gz is no further patient: it holds slices 82 to 111 of example_ct.nii.gz. The second CT patient is
# the DICOM series.
RECIPES = (
    Recipe(
        "",
        "CT patient 1",
        "tests/reference_files/example_ct.nii.gz",
        "tests/reference_files/example_seg_fast_force_split.nii.gz",
        "total",
        "CT",
    ),
    Recipe(
        "ct2_",
        "CT patient 2",
        "tests/reference_files/example_ct_dicom/",
        "tests/reference_files/example_seg_dicom.nii.gz",
        "total",
        "CT",
    ),
    Recipe(
        "mr_",
        "MR patient",
        "tests/reference_files/example_mr_sm.nii.gz",
        "tests/reference_files/example_seg_mr.nii.gz",
        "total_mr",
        "MR",
    ),
)
LABEL_MAPS = "totalsegmentator/map_to_binary.py"


# --- Reading the source -----------------------------------------------------------------------------------------------


def _need(module: str) -> Any:
    """Import a module of the extra, or say which extra brings it.

    Args:
        module: Name of the module.

    Returns:
        The module.

    Raises:
        ImportError: If the module is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"reading the source volumes needs {module}: pip install policy_noise[data]") from error


def read_members(source: Path) -> dict[str, bytes]:
    """Read the wanted files of the source distribution into memory.

    Args:
        source: The source distribution (``.tar.gz``), or the folder it was unpacked to.

    Returns:
        Contents by path inside the distribution, without the leading ``totalsegmentator-2.18.0/``.

    Raises:
        FileNotFoundError: If the source or one of its files is missing.
        ValueError: If the file is no tar archive.
    """
    wanted = [LABEL_MAPS] + [name for recipe in RECIPES for name in (recipe.image, recipe.labels)]
    folders = tuple(name for name in wanted if name.endswith("/"))
    found: dict[str, bytes] = {}
    if source.is_dir():
        for name in wanted:
            path = source / name
            if name in folders and path.is_dir():
                found.update({name + p.name: p.read_bytes() for p in sorted(path.iterdir()) if p.is_file()})
            elif path.is_file():
                found[name] = path.read_bytes()
    elif source.is_file():
        try:
            # Nothing is unpacked to disk, so member names cannot lead outside a folder.
            with tarfile.open(source) as archive:
                for member in archive:
                    name = member.name.partition("/")[2]
                    if member.isfile() and (name in wanted or name.startswith(folders)):
                        handle = archive.extractfile(member)
                        assert handle is not None
                        found[name] = handle.read()
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{source} is not a tar archive: {error}") from error
    else:
        raise FileNotFoundError(f"no such source: {source}")
    missing = [name for name in wanted if not any(key.startswith(name) for key in found)]
    if missing:
        raise FileNotFoundError(f"{source} lacks {', '.join(missing)}; is it {PACKAGE}?")
    return found


def parse_label_maps(code: str) -> dict[str, dict[int, str]]:
    """Read ``class_map`` from the source's module without executing it.

    Args:
        code: Text of ``map_to_binary.py``.

    Returns:
        Class name by label value, for each of the source's tasks.

    Raises:
        ValueError: If the module assigns no literal ``class_map``.
    """
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "class_map" for t in node.targets):
            return ast.literal_eval(node.value)
    raise ValueError("no class_map in the source's label maps")


def _read_nifti(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read a gzipped NIfTI file.

    Args:
        data: Content of the file.

    Returns:
        The voxels and their affine matrix.
    """
    image = _need("nibabel").Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asanyarray(image.dataobj), image.affine


def _read_dicom(files: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Read one axial DICOM series.

    Args:
        files: Contents of its files, in any order.

    Returns:
        The voxels in HU as x, y, z and their affine matrix, in NIfTI's world coordinates.

    Raises:
        ValueError: If the slices are not evenly spaced.
    """
    pydicom = _need("pydicom")
    _need("PIL")  # pydicom's decoder for the series' JPEG 2000
    slices = [pydicom.dcmread(io.BytesIO(data)) for data in files]
    first = slices[0]
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
    normal = np.cross(row, column)
    slices.sort(key=lambda s: float(normal @ np.array(s.ImagePositionPatient, float)))
    origins = np.array([s.ImagePositionPatient for s in slices], float)
    steps = np.diff(origins, axis=0)
    if not np.allclose(steps, steps[0], atol=1e-3):
        raise ValueError("the DICOM series has unevenly spaced slices")
    voxels = np.stack([s.pixel_array.T * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices], axis=-1)
    affine = np.eye(4)
    affine[:3, 0] = row * float(first.PixelSpacing[1])
    affine[:3, 1] = column * float(first.PixelSpacing[0])
    affine[:3, 2] = steps[0]
    affine[:3, 3] = origins[0]
    # DICOM's x and y run to the left and to the back, NIfTI's to the right and to the front.
    return voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _to_axial(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reorient a volume to slices as they are viewed: front at the top, the patient's right on the left.

    Args:
        voxels: The volume in the file's order.
        affine: Its affine matrix.

    Returns:
        The volume as slice (from the feet up), row, column, and the affine matrix of the reoriented axes.
    """
    nibabel = _need("nibabel")
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))
    return np.asanyarray(image.dataobj)[::-1, ::-1].transpose(2, 1, 0), image.affine


def load_volume(members: Mapping[str, bytes], recipe: Recipe) -> tuple[np.ndarray, np.ndarray, float]:
    """Load one scan and its organ labels.

    Args:
        members: Files of the source distribution (see ``read_members``).
        recipe: Which scan.

    Returns:
        Intensities and organ labels (0: none, otherwise 1 + index into ``ORGANS``) as slice, row, column, and the
        in-plane spacing in mm.

    Raises:
        ValueError: If the labels do not lie on the scan's grid or its pixels are not square.
    """
    if recipe.image.endswith("/"):
        raw = _read_dicom([members[name] for name in sorted(members) if name.startswith(recipe.image)])
    else:
        raw = _read_nifti(members[recipe.image])
    image, affine = _to_axial(*raw)
    classes, label_affine = _to_axial(*_read_nifti(members[recipe.labels]))
    if image.shape != classes.shape or not np.allclose(affine, label_affine, atol=0.01):
        raise ValueError(f"{recipe.labels} does not lie on the grid of {recipe.image}")
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    if not np.isclose(spacing[0], spacing[1], atol=1e-3):
        raise ValueError(f"{recipe.image} has pixels that are not square: {spacing}")
    maps = parse_label_maps(members[LABEL_MAPS].decode())
    return image, merge_labels(classes, maps[recipe.label_map]), float(spacing[0])


# --- Arrays: intensities, labels, geometry ----------------------------------------------------------------------------


def merge_labels(classes: np.ndarray, label_map: Mapping[int, str]) -> np.ndarray:
    """Turn the source's classes into organs.

    Args:
        classes: Class values of the source.
        label_map: Class name by value.

    Returns:
        uint8 array of the same shape: 0 for no organ of the list, otherwise 1 + index into ``ORGANS``.
    """
    table = np.zeros(max(int(classes.max(initial=0)), max(label_map)) + 1, np.uint8)
    for value, name in label_map.items():
        for index, patterns in enumerate(ORGANS.values()):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                table[value] = index + 1
    return table[classes]


def to_grey(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map a range of intensities to 0 to 255.

    Args:
        image: Intensities.
        low: Intensity that becomes 0; what lies below is clipped.
        high: Intensity that becomes 255; what lies above is clipped.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: If the range is empty.
    """
    if not high > low:
        raise ValueError(f"empty intensity range: {low} to {high}")
    scaled = (np.clip(image.astype(np.float64), low, high) - low) * (255.0 / (high - low))
    return np.rint(scaled).astype(np.uint8)


def _area_weights(size: int, new_size: int, step: float) -> np.ndarray:
    """Weights that average the pixels under each new pixel.

    Args:
        size: Number of old pixels.
        new_size: Number of new pixels.
        step: Width of a new pixel in old pixels.

    Returns:
        Matrix of ``new_size`` x ``size`` whose rows sum to 1.
    """
    edges = np.arange(new_size + 1) * step
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    weights = np.clip(overlap, 0.0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resample_in_plane(
    image: np.ndarray, labels: np.ndarray, spacing: float, target: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bring slices to the common pixel size; the slices themselves stay as they are.

    Args:
        image: Intensities as slice, row, column.
        labels: Labels of the same shape.
        spacing: Pixel size in mm.
        target: Wanted pixel size in mm.

    Returns:
        Intensities, averaged over the area of each new pixel, and labels, taken at its centre.
    """
    step = target / spacing
    if abs(step - 1.0) < 1e-3:
        return image, labels
    rows, columns = (max(1, int(size / step + 1e-6)) for size in image.shape[1:])
    down = _area_weights(image.shape[1], rows, step)
    across = _area_weights(image.shape[2], columns, step)
    # Rounded, so that a linear algebra library's order of summation cannot change a grey value.
    averaged = np.round(down @ image.astype(np.float64) @ across.T, 6)
    y, x = (
        np.minimum(((np.arange(n) + 0.5) * step).astype(int), image.shape[1 + i] - 1)
        for i, n in enumerate((rows, columns))
    )
    return averaged, labels[:, y[:, None], x]


def interior(labels: np.ndarray) -> np.ndarray:
    """Keep only pixels whose four neighbours in the slice have the same label.

    A model's segmentation is least reliable at the border, so centres of patches lie at least one pixel inside.

    Args:
        labels: Labels as slice, row, column.

    Returns:
        The labels, 0 on borders.
    """
    padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
    same = np.ones(labels.shape, bool)
    for neighbour in (padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]):
        same &= neighbour == labels
    return np.where(same, labels, 0).astype(labels.dtype)


# --- Arrays: splitting and cutting ------------------------------------------------------------------------------------


def count_per_slice(labels: np.ndarray, organs: int = len(ORGANS)) -> np.ndarray:
    """Count each organ's pixels in each slice.

    Args:
        labels: Labels as slice, row, column; 0 is no organ.
        organs: Number of organs.

    Returns:
        Array of slices x organs.
    """
    return np.stack([np.bincount(plane.ravel(), minlength=organs + 1)[1 : organs + 1] for plane in labels])


def split_slices(
    counts: np.ndarray,
    fractions: Sequence[float] = (0.6, 0.15, 0.25),
    minimum: Sequence[int] = (1, 1, 1),
    gap: int = GAP,
    smallest_block: int = 2,
) -> np.ndarray:
    """Assign whole slices to train, val and test, in blocks with unused slices between them.

    Neighbouring slices look alike, so a random split would put near-copies of the training patches into the test set.
    With one block per split, each split would lack the organs of the other end of the body. So the pattern train, gap,
    val, gap, test, gap may be repeated and shifted. The chosen pattern keeps the most organs in all three splits. Ties
    are broken by the longest blocks, then by the organ that gets the smallest part of its fair share in any split.

    Args:
        counts: Pixels of each organ in each slice (see ``count_per_slice``).
        fractions: Wanted shares of train, val and test.
        minimum: Pixels an organ must have in train, val and test to count as kept; in each it must also be seen in two
            slices.
        gap: Unused slices between two splits.
        smallest_block: Fewest slices of a block.

    Returns:
        For each slice 0, 1 or 2 (train, val, test), or -1 where it is unused.

    Raises:
        ValueError: If there are too few slices for three blocks.
    """
    slices = len(counts)
    shares = np.asarray(fractions, float) / np.sum(fractions)
    shortest = 3 * (smallest_block + gap)
    if slices < shortest - gap:
        raise ValueError(f"{slices} slices are too few for three blocks of {smallest_block} with gaps of {gap}")
    totals = np.maximum(counts.sum(axis=0), 1)
    best: tuple[tuple[int, int, float], np.ndarray] | None = None
    # The last gap of a cycle may lie beyond the last slice.
    for period in range(slices + gap, shortest - 1, -1):
        blocks = np.maximum(np.floor(shares * (period - 3 * gap)).astype(int), smallest_block)
        blocks[0] += period - 3 * gap - blocks.sum()
        if blocks[0] < smallest_block:
            continue
        for order in ((0, 1, 2), (0, 2, 1)):
            cycle = np.concatenate([[s] * blocks[s] + [-1] * gap for s in order]).astype(np.int8)
            for shift in range(period):
                split = np.resize(np.roll(cycle, shift), slices)
                kept = kept_organs(counts, split, minimum)
                pixels = np.stack([counts[split == s].sum(axis=0) for s in range(3)])
                served = (pixels / totals / shares[:, None])[:, kept].min(initial=1.0)
                score = (int(kept.sum()), period, float(served))
                if best is None or score > best[0]:
                    best = score, split
    if best is None:
        raise ValueError(f"no pattern of blocks fits {slices} slices")
    return best[1]


def kept_organs(counts: np.ndarray, split: np.ndarray, minimum: Sequence[int]) -> np.ndarray:
    """Find the organs with enough pixels in all three splits.

    Args:
        counts: Pixels of each organ in each slice (see ``count_per_slice``).
        split: Split of each slice (see ``split_slices``).
        minimum: Pixels an organ must have in train, val and test; in each it must also be seen in two slices, as one
            slice's patches are nearly copies of each other.

    Returns:
        For each organ, whether it is kept.
    """
    enough = [
        (counts[split == s].sum(axis=0) >= minimum[s]) & ((counts[split == s] > 0).sum(axis=0) >= 2) for s in range(3)
    ]
    return np.logical_and.reduce(enough)


def choose_centres(
    labels: np.ndarray, split: np.ndarray, organs: Sequence[int], amounts: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the centres of the patches, spread evenly over the slices of each split.

    Args:
        labels: Labels as slice, row, column, 0 where no centre may lie.
        split: Split of each slice (see ``split_slices``).
        organs: Organs to draw, as indices into ``ORGANS``.
        amounts: Patches for each organ in train, val and test.
        rng: Source of randomness.

    Returns:
        Centres (N x 3: slice, row, column) and, for each, its split and organ (N x 2).
    """
    centres, tags = [], []
    for organ in organs:
        where = np.argwhere(labels == organ + 1)
        for index, amount in enumerate(amounts):
            pool = rng.permutation(where[split[where[:, 0]] == index])
            # The first pixel drawn in every slice, then the second of every slice, and so on.
            order = np.argsort(pool[:, 0], kind="stable")
            starts = np.r_[0, np.flatnonzero(np.diff(pool[order, 0])) + 1]
            turn = np.empty(len(pool), int)
            turn[order] = np.arange(len(pool)) - np.repeat(starts, np.diff(np.r_[starts, len(pool)]))
            taken = pool[np.argsort(turn, kind="stable")[:amount]]
            centres.append(taken)
            tags.append(np.tile([index, organ], (len(taken), 1)))
    return np.concatenate(centres), np.concatenate(tags)


def cut_patches(image: np.ndarray, centres: np.ndarray, size: int = PATCH) -> np.ndarray:
    """Cut square patches from slices. Pixels outside a slice are 0, like air.

    Args:
        image: Grey values as slice, row, column.
        centres: Slice, row and column of each centre.
        size: Side of a patch; the centre is pixel ``size // 2`` of either axis.

    Returns:
        Patches, N x size x size.
    """
    half = size // 2
    padded = np.pad(image, ((0, 0), (half, size - half), (half, size - half)))
    offsets = np.arange(size)
    z, y, x = centres.T
    return padded[z[:, None, None], y[:, None, None] + offsets[:, None], x[:, None, None] + offsets]


def build_task(
    grey: np.ndarray,
    labels: np.ndarray,
    amounts: Sequence[int],
    rng: np.random.Generator,
    gap: int = GAP,
) -> dict[str, np.ndarray]:
    """Make the arrays of one task from one volume.

    An organ that cannot give that many patches in each of the three splits is left out of the task.

    Args:
        grey: Grey values (uint8) as slice, row, column.
        labels: Organ labels of the same shape, 0 for none.
        amounts: Patches for each organ in train, val and test.
        rng: Source of randomness.
        gap: Unused slices between two splits.

    Returns:
        ``{train,val,test}_{images,labels,slices}`` and ``classes``, the labels that occur.

    Raises:
        ValueError: If no organ is found in all three splits.
    """
    labels = interior(labels)
    counts = count_per_slice(labels)
    split = split_slices(counts, minimum=amounts, gap=gap)
    organs = np.flatnonzero(kept_organs(counts, split, amounts)).tolist()
    if not organs:
        raise ValueError("no organ has enough pixels in all three splits")
    centres, tags = choose_centres(labels, split, organs, amounts, rng)
    # Shuffled, so that the first n patches are a fair sample.
    order = rng.permutation(len(centres))
    centres, tags = centres[order], tags[order]
    patches = cut_patches(grey, centres)
    arrays = {"classes": np.array(organs, np.uint8)}
    for index, name in enumerate(SPLITS):
        mine = tags[:, 0] == index
        arrays[f"{name}_images"] = np.ascontiguousarray(patches[mine])
        arrays[f"{name}_labels"] = tags[mine, 1:].astype(np.uint8)
        arrays[f"{name}_slices"] = centres[mine, 0].astype(np.int16)
    return arrays


def build(
    source: Path, seed: int, amounts: Sequence[int], transfer_amounts: Sequence[int], gap: int = GAP
) -> dict[str, np.ndarray]:
    """Build the whole data set.

    Args:
        source: The source distribution or the folder it was unpacked to.
        seed: Seed of the draw.
        amounts: Patches for each organ of the pretraining task in train, val and test.
        transfer_amounts: The same for the two other tasks.
        gap: Unused slices between two splits.

    Returns:
        The arrays of the file, by key.
    """
    members = read_members(source)
    arrays: dict[str, np.ndarray] = {"names": np.array(list(ORGANS))}
    for index, recipe in enumerate(RECIPES):
        image, labels, spacing = load_volume(members, recipe)
        image, labels = resample_in_plane(image, labels, spacing, SPACING_MM)
        low, high = CT_WINDOW_HU if recipe.modality == "CT" else np.percentile(image, MR_PERCENTILES)
        grey = to_grey(image, float(low), float(high))
        # One random stream per task, so that changing one task leaves the others unchanged.
        rng = np.random.default_rng([seed, index])
        task = build_task(grey, labels, transfer_amounts if recipe.prefix else amounts, rng, gap)
        arrays.update({recipe.prefix + key: value for key, value in task.items()})
    return arrays


# --- Writing ----------------------------------------------------------------------------------------------------------


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz atomically. Its bytes depend only on the arrays.

    Args:
        path: Where to; an existing file is replaced in one step.
        arrays: Arrays by key. None may hold objects.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=path.name + ".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                for key, value in arrays.items():
                    # A fixed date and system: the archive would otherwise carry the time and place of its making.
                    info = zipfile.ZipInfo(key + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info.create_system = 3
                    content = io.BytesIO()
                    np.lib.format.write_array(content, np.ascontiguousarray(value), allow_pickle=False)
                    archive.writestr(info, content.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Hash the contents of a data set, independently of the compression.

    Args:
        arrays: Arrays by key.

    Returns:
        SHA-256 in hexadecimal.
    """
    sha = hashlib.sha256()
    for key in sorted(arrays):
        value = np.ascontiguousarray(arrays[key])
        sha.update(f"{key} {value.dtype.str} {value.shape} ".encode())
        sha.update(value.tobytes())
    return sha.hexdigest()


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read a data set.

    Args:
        path: The npz file.

    Returns:
        Arrays by key.
    """
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


# --- Reports ----------------------------------------------------------------------------------------------------------


def _ranges(values: np.ndarray) -> str:
    """Write sorted whole numbers as ranges, ``0-3 7``.

    Args:
        values: The numbers.

    Returns:
        The text.
    """
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return " ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)


def describe(arrays: Mapping[str, np.ndarray]) -> str:
    """Describe the contents of a data set in Markdown tables.

    Args:
        arrays: The data set.

    Returns:
        The text.
    """
    lines = ["| task | split | patches | classes | slices used |", "|---|---|---|---|---|"]
    for recipe in RECIPES:
        for split in SPLITS:
            key = recipe.prefix + split
            slices = np.unique(arrays[f"{key}_slices"])
            labels = arrays[f"{key}_labels"]
            lines.append(f"| {recipe.title} | `{key}` | {len(labels)} | {len(np.unique(labels))} | {_ranges(slices)} |")
    names = arrays["names"]
    lines += [
        "",
        "| label | organ | " + " | ".join(recipe.title for recipe in RECIPES) + " |",
        "|---|---|" + "---|" * len(RECIPES),
    ]
    for label, name in enumerate(names):
        cells = []
        for recipe in RECIPES:
            counts = [int((arrays[f"{recipe.prefix}{split}_labels"] == label).sum()) for split in SPLITS]
            cells.append(" / ".join(map(str, counts)) if any(counts) else "-")
        lines.append(f"| {label} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _score(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    """Fit a logistic regression and score it.

    Args:
        train: Features (N x D, 0 to 255) and labels to fit.
        test: The same to score.

    Returns:
        Balanced accuracy over the classes of ``test``.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import recall_score

    mean = train[0].mean(axis=0)
    model = LogisticRegression(C=0.01, max_iter=2000).fit((train[0] - mean) / 64.0, train[1])
    guess = model.predict((test[0] - mean) / 64.0)
    return float(recall_score(test[1], guess, labels=np.unique(test[1]), average="macro"))


def check(arrays: Mapping[str, np.ndarray], seed: int = 0, draws: int = 5) -> str:
    """Measure how hard the tasks are for a linear model and how much a random split leaks, as a Markdown table.

    Args:
        arrays: The data set.
        seed: Seed of the random splits.
        draws: Random splits to average over.

    Returns:
        The text.
    """

    def take(key: str) -> tuple[np.ndarray, np.ndarray]:
        images = arrays[f"{key}_images"]
        return images.reshape(len(images), -1).astype(np.float64), arrays[f"{key}_labels"][:, 0]

    def only(data: tuple[np.ndarray, np.ndarray], classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mine = np.isin(data[1], classes)
        return data[0][mine], data[1][mine]

    def corner(data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        pixels = data[0].reshape(-1, PATCH, PATCH)[:, :3, :3]
        return pixels.reshape(len(pixels), -1), data[1]

    rows = []
    for recipe in RECIPES:
        train, test = take(recipe.prefix + "train"), take(recipe.prefix + "test")
        classes = len(np.unique(test[1]))
        rows.append((f"{recipe.title}, its own split (blocks of slices)", classes, _score(train, test)))
        pool = tuple(np.concatenate(parts) for parts in zip(train, test, strict=True))
        scores = []
        for draw in range(draws):
            order = np.random.default_rng([seed, draw]).permutation(len(pool[1]))
            fit, held = order[: len(train[1])], order[len(train[1]) :]
            scores.append(_score((pool[0][fit], pool[1][fit]), (pool[0][held], pool[1][held])))
        label = f"{recipe.title}, the same patches split at random (leaks), mean of {draws} draws"
        rows.append((label, classes, math.fsum(scores) / draws))
        rows.append(
            (f"{recipe.title}, its own split, only the 3 x 3 corner", classes, _score(corner(train), corner(test)))
        )
    for recipe in RECIPES[1:]:
        shared = np.intersect1d(arrays["classes"], arrays[recipe.prefix + "classes"])
        # Nothing is fitted on the other scan, so all three of its splits can be used for testing.
        parts = [only(take(recipe.prefix + split), shared) for split in SPLITS]
        other = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
        score = _score(only(take("train"), shared), other)
        rows.append((f"CT patient 1 train to all of {recipe.title}, shared classes", len(shared), score))
    lines = ["| logistic regression on pixels | classes | chance | balanced accuracy |", "|---|---|---|---|"]
    lines += [f"| {label} | {classes} | {1 / classes:.2f} | {score:.2f} |" for label, classes, score in rows]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments; those of the process if None.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--sdist", type=Path, metavar="FILE", help=f"{PACKAGE}.tar.gz")
    source.add_argument("--volumes", type=Path, metavar="DIR", help="the folder that archive was unpacked to")
    parser.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="file to write, or to check (organpatches.npz in data/ beside this script)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (%(default)s)")
    three = {"type": int, "nargs": 3, "metavar": ("TRAIN", "VAL", "TEST")}
    parser.add_argument("--per-organ", **three, default=(112, 28, 50), help="patches of CT patient 1 (112 28 50)")
    parser.add_argument("--per-organ-transfer", **three, default=(60, 16, 48), help="of the others (60 16 48)")
    parser.add_argument("--gap", type=int, default=GAP, help="unused slices between splits (%(default)s)")
    parser.add_argument("--check", action="store_true", help="print contents, difficulty and leakage of the file")
    args = parser.parse_args(argv)
    where = args.sdist or args.volumes
    if where is None and not args.check:
        parser.error("give --sdist or --volumes to build, or --check to look at an existing file")
    if args.seed < 0 or args.gap < 0 or min(*args.per_organ, *args.per_organ_transfer) < 1:
        parser.error("--seed and --gap must not be negative, and every number of patches must be at least 1")
    try:
        if where is not None:
            arrays = build(where, args.seed, args.per_organ, args.per_organ_transfer, args.gap)
            write_npz(args.output, arrays)
        if args.check:
            arrays = read_npz(args.output)
            print(describe(arrays), check(arrays), sep="\n\n", end="\n\n")
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.output.name}: {args.output.stat().st_size} bytes, contents {digest(arrays)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
