"""Helpers that know nothing of networks: errors and exit codes, files, the machine, progress, checks of settings.

Nothing here imports another sub-package. Open ``errors.py`` first for the exit codes, then ``files.py`` for atomic writes.
"""
