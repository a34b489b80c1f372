"""Hands EC2's notice of a spot reclaim on to Ray, so that training ranks save a checkpoint in the two minutes that are left.

Runs on every worker of cluster.yaml beside the raylet: asks the instance's metadata every five seconds, and on a notice drains its node.
Nobody else does that on EC2. Under Kubernetes a node drains itself when its pod is told to go.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = os.environ.get("SPOT_METADATA", "http://169.254.169.254")
EVERY_S = 5.0
LEFT_S = 100  # of the two minutes, for the drain itself


def noticed(metadata: str = METADATA) -> bool:
    """Return whether this instance will be taken away; no answer, as on demand or off AWS, is no notice."""
    try:
        asking = urllib.request.Request(
            f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        with urllib.request.urlopen(asking, timeout=2) as answer:
            token = answer.read().decode()
        asking = urllib.request.Request(f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token})
        with urllib.request.urlopen(asking, timeout=2) as answer:
            return b"action" in answer.read()
    except OSError:  # a 404, which means no notice, is one too
        return False


def own_node() -> str:
    """Return the id of the node that this machine's raylet is."""
    import ray

    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    try:
        return ray.get_runtime_context().get_node_id()
    finally:
        ray.shutdown()


def drain(node: str) -> int:
    """Tell Ray that a node is about to go, and return the exit code of its command."""
    command = ["ray", "drain-node", "--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot reclaim"]
    return subprocess.run([*command, "--deadline-remaining-seconds", str(LEFT_S)], check=False).returncode


def main(node: str | None = None) -> int:
    """Wait for a notice, drain this node, and return 0 once Ray has taken it."""
    while not noticed():
        time.sleep(EVERY_S)
    node = node or own_node()
    for _ in range(5):
        if drain(node) == 0:
            return 0
        time.sleep(EVERY_S)
    return 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:2]))
