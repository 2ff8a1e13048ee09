"""Data sets, recipes, training, metrics, statistics and reports for the commands and the scripts in ``examples/``.

Needs ``pip install "policy_noise[examples]"``; ``import policy_noise`` never imports it.
"""
