"""Seeds of the evaluation images' shifts, and MedMNIST-C's corruptions."""

import numpy as np

SHIFT_SEEDS = {"val": 1000, "test": 2000}
CORRUPTION_SEVERITIES = (0, 2, 4)
"""Of MedMNIST-C's five."""


def medmnist_c(name: str, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Images under MedMNIST-C's corruptions (Di Salvo et al. 2024, package ``medmnistc``), at their own size.

    The package was made for 224 px and seeds its corruptions globally; here each starts from a seed of its own.

    Args:
        name: The package's name of the set whose list of corruptions is meant.
        images: uint8, (N, S, S).
        seed: Of the first corruption.

    Returns:
        By ``"<corruption>-<severity>"``, severities 1, 3 and 5.

    Raises:
        ImportError: If the package or ImageMagick is missing.
    """
    from medmnistc.corruptions.registry import CORRUPTIONS_DS
    from PIL import Image

    state = np.random.get_state()  # noqa: NPY002  (the package draws from the global state)
    sets = {}
    for number, (corruption, corruptor) in enumerate(CORRUPTIONS_DS[name].items()):
        for severity in CORRUPTION_SEVERITIES:
            np.random.seed(seed + 10 * number + severity)  # noqa: NPY002
            corruptor.rng = np.random.default_rng(seed + 10 * number + severity)  # impulse noise asks for it
            made = [corruptor.apply(Image.fromarray(image).convert("RGB"), severity) for image in images]
            grey = [np.asarray(Image.fromarray(np.asarray(image)).convert("L")) for image in made]
            sets[f"{corruption}-{severity + 1}"] = np.stack(grey)
    np.random.set_state(state)  # noqa: NPY002
    return sets
