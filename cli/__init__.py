"""What a person types: parse, call one function, print.

Each command reads its options into a recipe, calls one function of :mod:`secateur.pipeline` and prints what comes back.
Start with ``commands.py``.
"""

from .commands import main as main
