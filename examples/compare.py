"""Compare training methods on your own data: does shading help, where, and what could the test have detected?"""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
