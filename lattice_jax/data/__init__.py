"""Sources of tokens, the plan that says which of them an update reads, and the readers."""
