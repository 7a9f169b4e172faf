"""The steps of a run: each takes what it needs, does one thing and returns its result."""
