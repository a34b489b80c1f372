"""A cloud on this machine for Ray's autoscaler: nodes are processes, spot never has capacity, and every call is written down.

Imported by the head by its bare name, as `provider.module` of a cluster file has it. `SpotFallback` is the one that cluster.yaml uses.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from spot_fallback import MARKET, SpotFallback  # type: ignore[import-not-found]  # from cluster/, as on a head

SLOW_S = 10


class Cloud(FakeMultiNodeProvider):
    """Starts raylets; `provider.log` names the file of calls.

    A file of that name with `.none` says that there is no capacity, one with `.slow` that machines take their time.
    """

    @property
    def log(self) -> Path:
        """Return the file of calls."""
        return Path(self.provider_config["log"])

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        """Start nodes, unless there is no capacity.

        Raises:
            NodeLaunchException: as EC2 says it.
        """
        kind = tags["ray-user-node-type"]
        if MARKET in node_config or self.log.with_suffix(".none").exists():
            self._tell("refuse", kind, f"{count} {'spot' if MARKET in node_config else 'on demand'}")
            raise NodeLaunchException("InsufficientInstanceCapacity", "there is none", None)
        if self.log.with_suffix(".slow").exists():
            time.sleep(SLOW_S)
        before = set(self._nodes)
        super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
        for node in sorted(set(self._nodes) - before):
            if self._nodes[node]["tags"]["ray-user-node-type"] == kind:  # another thread may have made one of another kind
                self._tell("create", kind, node)

    def terminate_node(self, node_id: str) -> None:
        """End a node."""
        kind = self._nodes[node_id]["tags"]["ray-user-node-type"]
        super().terminate_node(node_id)
        self._tell("terminate", kind, node_id)

    def _tell(self, event: str, kind: str, what: str) -> None:
        line = json.dumps({"t": time.time(), "event": event, "kind": kind, "what": what})
        descriptor = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


class Provider(SpotFallback, Cloud):  # type: ignore[misc]
    """The cloud with our fallback over it."""
