"""Callbacks for frameworks that need more than :func:`policy_noise.attach`: one module for each, imported by name.

Each module imports its framework. If that is missing, the error names the extra that installs it.
"""
