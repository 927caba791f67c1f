"""Bring a module into the form that everything else works on, as it is loaded.

Input: the module that ``--model`` names, as its author wrote it. Output: the same network with plain weights, all of them with
values, with one output, and a refusal of one that answers differently each time. Open ``permanent_weights.py`` first.
"""
