"""Compare pretrained weights by training on a few images of other data sets."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["transfer", *sys.argv[1:]])
