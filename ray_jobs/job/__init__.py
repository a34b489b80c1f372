"""What every job shares: the experiment's configuration, the connection to Ray, the index, and what must be cleared away afterwards.

Stages, tasks and tools stand on it. Open `experiment.py` for what can be configured, `runtime.py` for how a command runs.
"""
