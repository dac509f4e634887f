"""What the gates did: recorded on the device, kept as plain arrays."""
