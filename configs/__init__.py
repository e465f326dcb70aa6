"""Experiments as files. base.py declares every key; the others are diffs."""
