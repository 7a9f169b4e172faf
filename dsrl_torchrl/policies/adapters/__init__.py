"""Checkpoints that other projects trained, as frozen base policies: a loader a source, no code of theirs executed."""
