"""Fine-tune a trained model on unmasked images. The classes may be other ones."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
