"""Talking to trained adapters: one base in memory, many adapters."""
