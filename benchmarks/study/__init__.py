"""Does learning the noise help? Runs the declared study, and analyses its results."""
