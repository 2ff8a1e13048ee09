"""MONAI's SupervisedTrainer on volumes, with a mask of three axes: one added handler.

Usage: python examples/integrations/monai_volumes.py
"""

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.losses import DiceLoss
from monai.networks.nets import UNet

from policy_noise.integrations.monai import PolicyNoiseHandler


def main() -> None:
    torch.manual_seed(0)
    volumes = torch.rand(8, 1, 32, 32, 32)
    rows = [{"image": volume, "label": (volume > 0.7).float()} for volume in volumes]
    network = UNet(spatial_dims=3, in_channels=1, out_channels=1, channels=(4, 8, 16), strides=(2, 2))
    noise = PolicyNoiseHandler(grid_size=4)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(Dataset(rows), batch_size=4, shuffle=True),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2),
        loss_function=DiceLoss(sigmoid=True),
        train_handlers=[noise],
    ).run()
    print(noise.hook.augmentation)
    print(noise.hook.metrics)


if __name__ == "__main__":
    main()
