"""Every op in every implementation that this device has, against its definition: for a new device or a new JAX."""
