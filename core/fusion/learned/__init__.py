"""Coefficients and masks that are learned from unlabelled prompts: AdaMerging and Concrete subspace learning."""
