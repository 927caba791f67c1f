"""What every room needs and what knows no network: errors, files, the machine, progress, checks of settings.

Nothing here imports another room. Open ``errors.py`` first for the exit codes, then ``files.py`` for how files are written
whole or not at all.
"""
