"""The built-in corpus `builtin:python-docs`: docstrings of installed packages come in, instruction–response pairs go out.

It needs no download and no licence of its own, so that the demo runs anywhere. Open `builder.py` first.
"""
