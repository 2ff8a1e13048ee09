"""Average the weights of a run's last epochs into averaged.safetensors."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["average", *sys.argv[1:]])
