"""The command line: every flag and argument, what it may be, and the library calls that it leads to."""
