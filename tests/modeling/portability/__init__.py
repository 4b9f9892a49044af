"""Checkpoints of several kinds, and the scripts that read them in older environments."""
