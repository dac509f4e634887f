"""The face of the studio: pages and the command line; imports no torch."""
