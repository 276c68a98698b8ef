"""Whether molecules are right for their movie: evidence and checks."""
