"""The cut and the repair."""
