"""AWS nodes that are spot while there is spot capacity, and on demand where there is none: the provider that cluster.yaml names.

Ray's own autoscaler asks for a spot node type again and again while its launches fail, and never for another type (Ray 2.60, tested by
`make cluster-test`). So the second try is made here, where a node is created. It needs no change in what a node type offers: the same
machine, paid otherwise.

`ray up` imports this file by its bare name, on your machine and on the head: it must be on PYTHONPATH there (`PYTHONPATH=cluster ray up …`;
cluster.yaml sets it for the head).
"""

from __future__ import annotations

import logging
from typing import Any

from ray.autoscaler.node_launch_exception import NodeLaunchException

logger = logging.getLogger(__name__)

MARKET = "InstanceMarketOptions"
# EC2's codes for "not now, not on spot": anything else (a quota on all instances, a wrong image) fails on demand as well.
NO_SPOT = frozenset({"InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow", "UnfulfillableCapacity"})


class SpotFallback:
    """Over a node provider: a spot launch that fails for want of capacity is made once more, on demand.

    `provider.on_demand_fallback: false` in the cluster file switches that off: then a job waits for spot, and ends with exit code 3.
    """

    provider_config: dict[str, Any]

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> dict[str, Any] | None:
        """Create nodes of a type; see `ray.autoscaler.node_provider.NodeProvider`.

        Raises:
            NodeLaunchException: neither market has them, or what failed isn't capacity.
        """
        create: Any = super().create_node_with_resources_and_labels  # type: ignore[misc]
        try:
            return create(node_config, tags, count, resources, labels)
        except NodeLaunchException as error:
            if MARKET not in node_config or error.category not in NO_SPOT or not self.provider_config.get("on_demand_fallback", True):
                raise
            logger.warning("no spot capacity for %d x %s (%s): on demand", count, node_config.get("InstanceType"), error.category)
        on_demand = {name: value for name, value in node_config.items() if name != MARKET}
        return create(on_demand, tags, count, resources, labels)


def open_to_the_world(permissions: list[dict[str, Any]]) -> bool:
    """Return whether a security group's rules let anybody in, from anywhere."""
    ranges = [span.get("CidrIp") or span.get("CidrIpv6") for rule in permissions for span in rule["IpRanges"] + rule["Ipv6Ranges"]]
    return bool({"0.0.0.0/0", "::/0"} & set(ranges))


def __getattr__(name: str) -> Any:
    """Make `AWS`, the provider itself, when it is asked for: it needs boto3, which only a launcher and a head on AWS have."""
    if name != "AWS":
        raise AttributeError(name)
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    class AWS(SpotFallback, AWSNodeProvider):
        """EC2 with spot fallback, in a security group that isn't open to the world."""

        @staticmethod
        def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
            """Fill in subnets, keys and groups as Ray does, and refuse a group that lets everybody try port 22.

            Raises:
                ValueError: the group is open, which is what Ray makes where there is none of the name yet.
            """
            filled = bootstrap_aws(cluster_config)
            ec2 = AWSNodeProvider(filled["provider"], filled["cluster_name"]).ec2
            groups = {group for kind in filled["available_node_types"].values() for group in kind["node_config"]["SecurityGroupIds"]}
            for group in sorted(groups):
                if open_to_the_world(ec2.SecurityGroup(group).ip_permissions):
                    raise ValueError(
                        f"security group {group} lets the whole world in. Make your own first (docs/cluster.md, AWS, once); "
                        "where there is none of the name in provider.security_group, Ray has just made this one: delete it"
                    )
            return filled

    globals()["AWS"] = AWS
    return AWS
