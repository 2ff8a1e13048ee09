"""timm's training tasks, for ``policy_noise.attach(task, optimizer)``.

A task holds network and criterion. One call of it is a forward pass with its loss. It is the right module to hook:
timm compiles, wraps and copies (EMA) the network inside, and validates with that network alone.

Mixup and CutMix come before the task, so the mixed image is masked, and the reward is the loss on the mixed targets.
With AugMix splits every view gets its own mask. The Jensen-Shannon loss couples an image's views, so each of their
masks is rewarded with the image's whole loss. A distillation task's teacher sees the masked image too, and the reward
is the loss on the targets.
"""

from typing import Any

from torch import Tensor, nn

from ..losses import LossSplitter, is_hookable

__all__ = ["task_network", "task_rewards"]


def task_network(task: nn.Module) -> nn.Module:
    """The network that a task trains."""
    network = getattr(task, "trainable_module", None)
    return network if isinstance(network, nn.Module) else task


def task_rewards(task: nn.Module) -> dict[str, Any]:
    """Return the hook arguments that give one loss per sample for a task.

    A criterion that is a module is hooked. A plain function, or timm's JsdCrossEntropy (whose forward hooks never run),
    is called once more with the task's ``"output"``.

    Raises:
        ValueError: If the task has no ``criterion``.
    """
    criterion = getattr(task, "criterion", None)
    if not callable(criterion):
        raise ValueError(
            f"criterion of {type(task).__name__} is {criterion!r}, which cannot be called: pass criterion or "
            "output_loss to attach"
        )
    if isinstance(criterion, nn.Module) and is_hookable(criterion):
        return {"criterion": criterion}

    splitter = LossSplitter(criterion)

    def output_loss(output: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        target = kwargs["target"] if "target" in kwargs else args[1]
        # A distillation task's loss has more terms, so do not compare with it: evaluate the criterion itself.
        return splitter((output["output"], target), {}, None).values

    return {"output_loss": output_loss}
