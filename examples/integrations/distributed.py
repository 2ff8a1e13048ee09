"""DDP, or FSDP2 with --fsdp: the same added line on every rank.

Usage: torchrun --nproc-per-node 2 examples/integrations/distributed.py [--fsdp]
"""

import argparse

import timm
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import policy_noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fsdp", action="store_true", help="shard the network instead of copying it")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(64, 3, 32, 32) * 2 - 1, torch.randint(4, (64,)))
    loader = DataLoader(data, batch_size=16, sampler=DistributedSampler(data))
    network, criterion = timm.create_model("test_resnet", num_classes=4), nn.CrossEntropyLoss()
    model = fully_shard(network) if arguments.fsdp else DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    # The added line comes after the process group is set up. FSDP's own checkpoints gather the optimizer's state
    # without the policy: with FSDP, save hook.state_dict() too.
    hook = policy_noise.attach(model, optimizer, criterion, state_in_optimizer=not arguments.fsdp)

    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for images, targets in loader:
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"rank {dist.get_rank()}: reward {hook.metrics['reward']:.4f}, the same on all ranks")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
