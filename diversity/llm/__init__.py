"""Language models are asked here, for whatever purpose: requests come in, kept answers go out, nothing is asked twice.

It knows nothing of tags, corpora or datasets: prompts and the meaning of answers belong to who asks. Open `endpoint.py` first.
"""
