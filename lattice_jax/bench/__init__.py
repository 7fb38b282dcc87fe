"""Speed and memory of ops against named baselines, measured in one process."""
