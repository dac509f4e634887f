"""Task vectors over a noisy or hostile channel: attacks, protections, realignment, and the sweep over SNR."""
