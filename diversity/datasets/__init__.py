"""Choices become sealed datasets: picked rows and the corpus come in, parquet with a manifest goes out, read again before it is sealed.

Exports for other trainers are written from sealed datasets alone. Open `dataset.py` first.
"""
