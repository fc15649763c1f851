"""Frozen values and pure rules: specs, jobs, versions, gates. Knows no framework, does no SQL."""
