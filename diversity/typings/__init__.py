"""Samples become sets of types: texts of one side come in, an incidence (samples × types, compressed sparse rows) goes out.

A type is a token, a tag or a topic: `tokens.py`, `tags.py` and `topics.py` make one kind each, with the help of the files beside them.
`embedders/` and `taggers/` hold the exchangeable parts. Open `incidence.py` first: every typing ends in one.
"""
