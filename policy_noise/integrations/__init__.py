"""Where training frameworks need more than :func:`policy_noise.attach`: one module for each, imported by name.

Each module imports its framework, and says which extra installs it where it is missing.
"""
