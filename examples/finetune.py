"""Fine-tune a heated model on clean images."""

from policy_noise.experiments.cli import finetune

if __name__ == "__main__":
    finetune()
