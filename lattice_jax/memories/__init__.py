"""Memory layers, a folder each."""
