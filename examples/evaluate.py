"""Score a heated model on a test split."""

from policy_noise.experiments.cli import evaluate

if __name__ == "__main__":
    evaluate()
