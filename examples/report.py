"""Write the HTML report of a run or a comparison again."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
