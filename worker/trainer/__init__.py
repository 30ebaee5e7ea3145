"""Training as a pure library with a command line: a spec and files in, artifacts and JSON events out."""
