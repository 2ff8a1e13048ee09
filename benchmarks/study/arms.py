"""The arms of the study: what happens to the training images."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One training method.

    Args:
        name: Its name in records. A name stands for one setting for ever: an arm that changes gets another one.
        title: Its name in tables.
        normalize: The network brings each image to mean 0 and standard deviation 1, in training and at test.
        augment: One of :data:`policy_noise.experiments.rivals.RIVALS`, before any mask.
        masks: Settings of :class:`policy_noise.RandomShading`, or, for learned ones, of
            :class:`policy_noise.PolicyNoiseMask`.
        policy: Settings of :class:`policy_noise.ReinforceHook`, for learned masks.
        swapped: Put each learned mask on another image of the batch, and reward it by that image's loss.
    """

    name: str
    title: str
    normalize: bool = False
    augment: str | None = None
    masks: Mapping[str, Any] | None = None
    policy: Mapping[str, Any] | None = None
    swapped: bool = False

    def on(self, other: "Arm") -> "Arm":
        """This arm's masks or augmentation on top of another arm."""
        return replace(
            self,
            name=f"{other.name}+{self.name}",
            title=f"{other.title.removeprefix('each image ')}, then {self.title}",
            normalize=other.normalize or self.normalize,
            augment=other.augment or self.augment,
        )


def shading(
    upsample: str, pattern_std: float | tuple[float, float], brightness_std: float, clip: bool = False
) -> dict[str, Any]:
    """Settings of random masks: of 2 x 2 cells with the paper's blur, or smooth ones through 3 x 3 points."""
    settings = {"grid_size": 2 if upsample == "nearest" else 3, "upsample": upsample, "clip": clip}
    return {**settings, "pattern_std": pattern_std, "brightness_std": brightness_std}


RANDOM = shading("nearest", 0.1, 0.2)
"""The default of ``RandomShading`` when the protocol was declared."""
LEARNED = {**RANDOM, "center_brightness": True}
POLICY = {"reward": "adversarial", "entropy_target": -0.075}
"""Those of ``preset="learned"`` then."""

PLAIN = Arm("plain", "plain")
NORMALIZED = Arm("normalized", "each image normalized", normalize=True)
MASKS = Arm("random", "masks nearest .10 .20", masks=RANDOM)
SMOOTH = Arm("smooth", "masks linear 0-.4 .20", masks=shading("linear", (0.0, 0.4), 0.2))
JITTER = Arm("color-jitter", "ColorJitter", augment="color_jitter")
BIAS_FIELD = Arm("bias-field", "random bias field", augment="bias_field")
OTHERS = (
    Arm("randaugment", "RandAugment", augment="randaugment"),
    Arm("trivialaugment", "TrivialAugmentWide", augment="trivialaugment"),
    Arm("augmix", "AugMix", augment="augmix"),
    Arm("mixup", "MixUp", augment="mixup"),
    Arm("swap-statistics", "statistics swapped", augment="swap_statistics"),
    Arm("randconv", "RandConv", augment="randconv"),
)
LEARNT = Arm("learned", "learned masks", masks=LEARNED, policy=POLICY)
SWAPPED = replace(LEARNT, name="learned-swapped", title="learned masks, swapped", swapped=True)
