"""The published tables: which rows there are, how each is made at either scale, and how results are judged."""
