"""The compiled kernels for CPUs, in C."""
