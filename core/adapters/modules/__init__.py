"""The tensors behind the words (torch)."""
