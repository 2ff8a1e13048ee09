"""Train a classifier from scratch: conventionally, under frozen noise or under policy noise."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
