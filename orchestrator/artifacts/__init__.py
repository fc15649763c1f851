"""Bytes by their sha256: what training makes and the registry names, on a disk or in a bucket."""
