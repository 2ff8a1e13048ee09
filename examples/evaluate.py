"""Score a trained model on a test split: macro metrics, per class, per modality and anatomy."""

import sys

from policy_noise.experiments.commands import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
