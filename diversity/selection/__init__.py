"""Types become choices: an incidence, a size and a level come in, rows of an exact size go out, each with the type that it was taken for.

`peel.py` orders the types (Algorithm 1), `levels.py` turns levels into numbers of kept types, `cover.py`, `greedy.py` and `fill.py` sample
(Algorithm 2), `bound.py` and `chance.py` say what any choice and what a random one could cover, `controls.py` holds lengths or sources
fixed, `sharded.py` and `sharded_picks.py` do the same over rows that no machine holds. The strategies, ours and the baselines, are in
`strategies/`. Open `peel.py` first.
"""
