"""Pallas kernels for TPUs and Hopper GPUs; they import JAX alone."""
