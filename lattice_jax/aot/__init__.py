"""Programs compiled for machines that are not there, and what the compiled programs say of themselves."""
