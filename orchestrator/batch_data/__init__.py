"""What goes into a batch run and comes out of it: files, rows, shards, parts, the manifest.

Knows no Ray, no torch and no SQL.
"""
