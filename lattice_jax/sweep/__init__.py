"""Sweeps: many trainings from one file in W&B's sweep format, without W&B's server."""
