"""Compare ways to train on your own data: does it help, where, and could it have been seen?"""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
