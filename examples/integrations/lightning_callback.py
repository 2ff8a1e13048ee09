"""Lightning: one added callback.

Usage: python examples/integrations/lightning_callback.py
"""

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from policy_noise.integrations.lightning import PolicyNoiseCallback


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=4)
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return self.criterion(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> None:
    torch.manual_seed(0)
    loader = DataLoader(
        TensorDataset(torch.rand(64, 3, 32, 32) * 2 - 1, torch.randint(4, (64,))), batch_size=16, shuffle=True
    )
    noise = PolicyNoiseCallback("model", "criterion")  # names of the module's parts
    Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[noise]).fit(
        Classifier(), loader
    )
    print(noise.hook.metrics)


if __name__ == "__main__":
    main()
