"""The equation over contrast entries that are distributed over ranks."""
