"""The command line: each command parses its options, calls one function and prints the result.

In: a command line. Out: calls of :mod:`secateur.pipeline`, tables, and an exit code. Nothing heavy is imported before a command
runs. Open ``app.py`` first (errors and exit codes), then ``prune_and_export.py``; each command has a file of its own.
"""

from .commands import main as main
