"""What the scripts under ``examples/`` share: data sets, recipes, training, metrics, statistics and reports.

Needs ``pip install "policy_noise[examples]"``; ``import policy_noise`` never imports it.
"""
