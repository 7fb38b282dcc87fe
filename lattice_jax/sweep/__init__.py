"""Sweeps: many training runs from one file in W&B's sweep format, without W&B's server."""
