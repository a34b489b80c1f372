"""What stages send to workers: the functions and actors that run on other machines, and the tables that cut the work into pieces.

A task knows the sealed artifacts that it reads and writes, and nothing of the stage that sent it. Open `building.py` first.
"""
