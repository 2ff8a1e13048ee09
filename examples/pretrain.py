"""Train a classifier from scratch: without masks, with random masks, or with learned masks."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
