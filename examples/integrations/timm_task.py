"""timm's training tasks, as its train.py uses them: one added line.

Usage: python examples/integrations/timm_task.py
"""

import timm
import torch
from timm.data import Mixup
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask

import policy_noise


def main() -> None:
    torch.manual_seed(0)
    images, targets = torch.rand(64, 3, 32, 32) * 2 - 1, torch.randint(4, (64,))
    task = ClassificationTask(timm.create_model("test_resnet", num_classes=4), criterion_kwargs={"soft_targets": True})
    optimizer = create_optimizer_v2(task.trainable_module, opt="lookahead_adamw", lr=1e-2)
    ema = task.setup_ema(decay=0.9)
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, num_classes=4)

    hook = policy_noise.attach(task, optimizer, preset="learned")  # the added line, before resuming

    for epoch in range(2):
        task.train()
        for batch in torch.randperm(64).split(16):
            mixed, soft = mixup(images[batch], targets[batch])
            loss = task(mixed, soft)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            task.update_ema()
        with torch.no_grad():
            accuracy = (ema.module.eval()(images).argmax(1) == targets).float().mean()
        print(f"epoch {epoch}: accuracy {accuracy:.2f}, entropy {hook.metrics['entropy']:.2f} nats an image")


if __name__ == "__main__":
    main()
