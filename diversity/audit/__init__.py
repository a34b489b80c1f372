"""Sealed datasets are asked whether they keep their promises: folders come in, verdicts go out, each found out again from the files.

It shares no code with what it audits where that code could hide an error: `recount.py` counts anew. `promises.py` has one function a
promise, `certificate.py` puts them together, `explanation.py` says why a sample is in a dataset or is not. Open `promises.py` first.
"""
