"""Callbacks for frameworks that need more than :func:`policy_noise.attach`.

There is one module per framework. Each imports its framework. If that is missing, the error names the extra that
installs it.
"""
