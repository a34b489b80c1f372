"""Any SFT data becomes samples: files of every known format, hubs and a built-in corpus come in, rows in the order of `sample_id` go out.

Nothing is lost in silence: a row that can't be used leaves with a reason. Held-out samples and contamination by evaluation prompts are
dealt with here too, since both must be settled before anything is counted. Open `samples.py` first: it says what a sample is; then
`ingestion.py`, which makes a corpus of them.
"""
