"""Language models are asked here, for whatever purpose: requests come in, kept answers go out, nothing is asked or paid twice.

It knows nothing of tags, corpora or datasets: prompts and the meaning of answers belong to who asks. `asking.py` puts the parts together:
`endpoint.py` sends, `reading.py` reads what comes back, `budget.py` says what may be spent, `answers.py` keeps. Open `asking.py` first.
"""
