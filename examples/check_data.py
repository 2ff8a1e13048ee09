"""Read every image once and list the unreadable, constant and duplicate ones, within and across splits and classes."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["check-data", *sys.argv[1:]])
