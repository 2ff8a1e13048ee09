"""Compare initialisations on few images of other sets."""

from policy_noise.experiments.cli import transfer

if __name__ == "__main__":
    transfer()
