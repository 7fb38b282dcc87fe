"""One HTML page about a run, or about many beside one another."""
