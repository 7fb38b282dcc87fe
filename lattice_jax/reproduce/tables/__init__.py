"""The tables of each paper, as data."""
