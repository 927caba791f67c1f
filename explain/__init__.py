"""Which kernels matter."""
