"""Read every image once: which are unreadable, constant, or equal to another in a split, across splits or classes."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["check-data", *sys.argv[1:]])
