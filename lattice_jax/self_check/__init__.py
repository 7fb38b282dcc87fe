"""Checks every implementation of every op on this device against its definition: for a new device or a new JAX."""
