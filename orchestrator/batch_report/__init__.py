"""What came of a batch run: figures counted from its output rows, as JSON and as a page.

Pure: rows and facts in, values and text out. Rows are streamed; what is kept of them is bounded.
"""
