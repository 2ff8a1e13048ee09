"""Hugging Face's Trainer with a model that computes its loss inside: one added callback.

Usage: python examples/integrations/transformers_trainer.py
"""

import tempfile

import torch
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

from policy_noise.integrations.transformers import PolicyNoiseCallback


def main() -> None:
    torch.manual_seed(0)
    rows = [{"pixel_values": torch.rand(3, 32, 32), "labels": int(label)} for label in torch.randint(4, (64,))]
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    noise = PolicyNoiseCallback()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=2,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
        )
        Trainer(ResNetForImageClassification(config), arguments, train_dataset=rows, callbacks=[noise]).train()
    print(noise.hook.metrics)


if __name__ == "__main__":
    main()
