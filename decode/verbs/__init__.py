"""The verbs of the command line, each a function over files or arrays."""
