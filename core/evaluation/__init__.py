"""Per-task scores: option likelihoods, generation, metrics with errors, paired differences."""
