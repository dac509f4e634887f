"""One model from several trained adapters: task vectors, ways to combine them, and what the result is saved as."""
