"""The quickstart: a first comparison, on CT patches that come with the package."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
