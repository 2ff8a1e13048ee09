"""Average the weights of a run's last epochs."""

from policy_noise.experiments.cli import average

if __name__ == "__main__":
    average()
