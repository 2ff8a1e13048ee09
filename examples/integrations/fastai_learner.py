"""fastai: one added callback.

Usage: python examples/integrations/fastai_learner.py
"""

import timm
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from torch.utils.data import TensorDataset

from policy_noise.integrations.fastai import PolicyNoiseCallback


def main() -> None:
    torch.manual_seed(0)
    rows = TensorDataset(torch.rand(64, 3, 32, 32) * 2 - 1, torch.randint(4, (64,)))
    data = DataLoaders(DataLoader(rows, bs=16, shuffle=True), DataLoader(rows, bs=16), device="cpu")
    model = timm.create_model("test_resnet", num_classes=4)
    noise = PolicyNoiseCallback()
    Learner(data, model, loss_func=nn.CrossEntropyLoss(), cbs=[noise]).fit_one_cycle(2, 1e-2)
    print(noise.hook.metrics)


if __name__ == "__main__":
    main()
