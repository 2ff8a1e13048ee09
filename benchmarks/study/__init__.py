"""Does learning the masks help? Run the declared study and analyse its results."""
