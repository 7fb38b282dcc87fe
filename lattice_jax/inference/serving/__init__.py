"""Serving: many requests share the rows of one compiled decode step, and each gets the text it would get alone."""
