"""accelerate: one added line after prepare().

Usage: accelerate launch examples/integrations/accelerate_loop.py
"""

import timm
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import policy_noise


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model, criterion = timm.create_model("test_resnet", num_classes=4), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(
        TensorDataset(torch.rand(64, 3, 32, 32) * 2 - 1, torch.randint(4, (64,))), batch_size=16, shuffle=True
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    hook = policy_noise.attach(model, optimizer, criterion)  # the added line

    for _ in range(2):
        for images, targets in loader:
            with accelerator.accumulate(model):
                loss = criterion(model(images), targets)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
    accelerator.print(hook.metrics)
    accelerator.end_training()


if __name__ == "__main__":
    main()
