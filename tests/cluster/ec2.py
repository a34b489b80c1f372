"""Prepares an emulated EC2 as docs/cluster.md prepares the real one, and shows what is in it; runs in moto's environment."""

from __future__ import annotations

import json
import sys
import time

import boto3

TRUST = json.dumps({"Version": "2012-10-17", "Statement": []})


def prepare() -> None:
    """Make the two profiles and the security group, once the server answers."""
    for attempt in range(100):
        try:
            boto3.client("ec2").describe_vpcs()
            break
        except Exception:
            if attempt == 99:
                raise
            time.sleep(0.2)
    iam, ec2 = boto3.client("iam"), boto3.client("ec2")
    for name in ("sft-diversity-head", "sft-diversity-worker"):
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=TRUST)
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    group = ec2.create_security_group(GroupName="sft-diversity", Description="Ray nodes", VpcId=vpc["VpcId"])["GroupId"]
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "198.51.100.7/32"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[inside, ssh])


def show() -> None:
    """Print instances, and the rules of every security group, as JSON."""
    ec2 = boto3.client("ec2")
    instances = [one for reservation in ec2.describe_instances()["Reservations"] for one in reservation["Instances"]]
    groups = ec2.describe_security_groups()["SecurityGroups"]
    print(json.dumps({"instances": instances, "groups": groups}, default=str))


if __name__ == "__main__":
    {"prepare": prepare, "show": show}[sys.argv[1]]()
