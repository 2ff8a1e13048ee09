"""The 2-D sets of the ``medmnist`` package, with its names and checksums. Files are downloaded only on request."""

from pathlib import Path

import torch
from torchvision.datasets.utils import check_integrity

from ..utils.files import PathLike, write_atomic
from .data import ImageSet
from .npz import load_npz

__all__ = ["load_medmnist"]


def load_medmnist(flag: str, root: PathLike, *, size: int = 28, download: bool = False) -> ImageSet:
    """Load a 2-D MedMNIST set.

    Args:
        flag: Such as ``"pneumoniamnist"``; also multi-label ``"chestmnist"`` and 3-channel sets.
        root: Folder that holds the npz files.
        size: 28, 64, 128 or 224 pixels.
        download: Download a file that is missing or whose MD5 differs from the published one, for example an
            incomplete file. Only one process downloads at a time. Nothing is downloaded by default.

    Raises:
        FileNotFoundError: If the folder or the file is missing.
        ModuleNotFoundError: If the package is missing; the message names the extra.
        OSError: If the file cannot be fetched.
        ValueError: If the flag is unknown, not 2-D or has no such size, or the file is damaged.
    """
    # Not by medmnist's own classes: they download into place and take a damaged file as it is.
    try:
        from medmnist import INFO
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '--medmnist needs the medmnist package: pip install "policy_noise[examples]"; its files can be read '
            "without it by --npz"
        ) from error
    flat = sorted(name for name in INFO if not name.endswith("3d"))
    if flag not in flat:
        raise ValueError(f"flag must be one of {flat}, got {flag!r}")
    info = INFO[flag]
    if size not in (28, 64, 128, 224):
        raise ValueError(f"size must be 28, 64, 128 or 224, got {size!r}")
    root = Path(root)
    ending = "" if size == 28 else f"_{size}"
    path, url, md5 = root / f"{flag}{ending}.npz", info[f"url{ending}"], info[f"MD5{ending}"]
    if download:
        _fetch(path, url, md5)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: download it into {root}, or pass --download to have it fetched"
        )
    try:
        images = load_npz(path, multi_label="multi-label" in info["task"])
    except ValueError as error:
        if download or check_integrity(path, md5):
            raise
        raise ValueError(
            f"{error}; it is not the published file by its MD5: pass --download to have it fetched again"
        ) from error
    names = tuple(str(info["label"][key]) for key in sorted(info["label"], key=int))
    if len(names) != images.num_classes:
        raise ValueError(f"{path} holds {images.num_classes} classes, and {flag} has {len(names)}: a foreign file")
    return ImageSet(path.stem, images.train, images.val, images.test, names, {})


def _fetch(path: Path, url: str, md5: str) -> None:
    """Download the published file unless it is there, in one process while the others wait.

    Unlike :func:`torchvision.datasets.utils.download_url`, leave nothing under the file's name until it is whole.
    """
    from filelock import FileLock

    def fetch(temporary: Path) -> None:
        torch.hub.download_url_to_file(url, str(temporary))
        if not check_integrity(temporary, md5):
            raise OSError(f"its MD5 is not {md5}")

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if check_integrity(path, md5):
            return
        try:
            write_atomic(path, fetch)
        except OSError as error:  # of the network too
            raise OSError(f"{path} could not be fetched ({error}): get it from {url} into {path.parent}") from error
