"""fastai: a callback of ten lines, since fastai's optimizers are none of torch's.

Random masks need no callback: `policy_noise.attach(learner.model, None)`.

Usage: python examples/integrations/fastai_learner.py
"""

import timm
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from torch import nn
from torch.utils.data import TensorDataset

import policy_noise


class LearnedMasks(Callback):
    order = 12  # after DistributedTrainer, which wraps the model

    def before_fit(self) -> None:
        # replace=True: a fit that an exception ended has left its hook.
        self.hook = policy_noise.attach(self.learn.model, None, self.learn.loss_func, replace=True)

    def after_step(self) -> None:
        self.hook.step(self.learn.opt.hypers[-1]["lr"])

    def after_fit(self) -> None:
        self.hook.remove()


def main() -> None:
    torch.manual_seed(0)
    rows = TensorDataset(torch.rand(64, 3, 32, 32) * 2 - 1, torch.randint(4, (64,)))
    data = DataLoaders(DataLoader(rows, bs=16, shuffle=True), DataLoader(rows, bs=16), device="cpu")
    model = timm.create_model("test_resnet", num_classes=4)
    masks = LearnedMasks()
    Learner(data, model, loss_func=nn.CrossEntropyLoss(), cbs=[masks]).fit(2, 1e-2)
    print(masks.hook.metrics)


if __name__ == "__main__":
    main()
