"""Bytes that somebody else may have written, read with care; bytes of ours, written durably."""
