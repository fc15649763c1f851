"""Frozen base models on disk, checked when they are added and pinned by their fingerprint."""
