"""``python -m policy_noise``: the console command ``policy-noise``."""

from .experiments.commands import main

if __name__ == "__main__":
    main()
