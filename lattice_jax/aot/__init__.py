"""Compiles programs for machines that are not present, and reads facts from the compiled programs."""
