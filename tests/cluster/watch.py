"""Watches a cluster as one of its clients, twice a second: its nodes, and which are in use. `python -m tests.cluster.watch FILE`."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import sys
import time
import urllib.request
from contextlib import suppress

import ray
from ray._private.state import state


def sample() -> dict[str, object]:
    """Return the time, and (id, in use) of every worker node."""
    free = state.available_resources_per_node()
    nodes = []
    for node in ray.nodes():
        total = {name: amount for name, amount in node["Resources"].items() if name in ("CPU", "GPU")}
        if node["Alive"] and "node:__internal_head__" not in node["Resources"]:
            now = free.get(node["NodeID"], total)
            nodes.append((node["NodeID"], any(now.get(name, 0) + 1e-6 < amount for name, amount in total.items())))
    return {"t": time.time(), "nodes": nodes}


def scrape() -> list[str]:
    """Return the names of all series that Prometheus would find on the nodes' metrics ports now; no token is asked for."""
    names: set[str] = set()
    for node in ray.nodes():
        with suppress(OSError, http.client.HTTPException):  # a node may end within its answer
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            with urllib.request.urlopen(address, timeout=5) as answer:
                names |= set(re.findall(r"^([a-z]\w+)[{ ]", answer.read().decode(), re.MULTILINE))
    return sorted(names)


def main(path: str) -> None:
    """Write a line each half second until killed."""
    ray.init(logging_level="ERROR", log_to_driver=False)
    with open(path, "a", buffering=1) as stream:
        for turn in itertools.count():
            stream.write(json.dumps(sample() | ({"metrics": scrape()} if turn % 6 == 5 else {})) + "\n")
            time.sleep(0.5)


if __name__ == "__main__":
    main(sys.argv[1])
