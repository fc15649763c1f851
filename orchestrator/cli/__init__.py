"""The command line: thin commands over the Python API. Data goes to stdout, the rest to stderr.

Exit codes: 0 all well, 1 something failed, 2 wrong input. A user's mistake never shows a traceback.
"""

from orchestrator.cli.app import main

__all__ = ["main"]
