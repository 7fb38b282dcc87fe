"""What `import lattice_jax as lj` offers beyond the layers and ops of memories; docs/library.md shows each."""
