"""Fine-tune a heated model on clean images; the classes may be others."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
