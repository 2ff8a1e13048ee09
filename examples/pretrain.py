"""Pretrain a classifier; see python examples/pretrain.py --help."""

from policy_noise.experiments.cli import pretrain

if __name__ == "__main__":
    pretrain()
