"""Command-line apps."""
