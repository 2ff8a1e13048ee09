"""The quickstart: train with three methods and compare them in one table."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
