"""`ray up` and `ray down` of cluster.yaml against an emulated EC2, with stand-ins for ssh and rsync; and the Dockerfile under hadolint.

What this proves: the file is taken all the way, with our provider, and what would be run where. What it can't: that the image exists,
that AWS has capacity, that the container starts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLANTED = ("planted-token", "planted-secret-key", "planted-key-id")


@pytest.fixture
def launched(tools: Path, root: None, tmp_path: Path) -> Any:
    """Return (exit codes, folder with what was recorded) of a launch and its end, in a network namespace without a way out."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, so that made-up addresses can't be reached")
    (libraries,) = (tools.parent / "lib").glob("python3*/site-packages")
    boto = tmp_path / "boto"
    boto.mkdir()
    for name in ("boto3", "botocore", "s3transfer", "jmespath"):
        (boto / name).symlink_to(libraries / name)
    command = [
        "unshare",
        "-n",
        "sh",
        ROOT / "tests/cluster/rayup.sh",
        ROOT / "cluster.yaml",
        tmp_path,
        tools / "python",
        ROOT / ".venv/bin/ray",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment["PYTHONPATH"] = f"{ROOT}/cluster:{boto}"
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    return done, tmp_path


def test_a_cluster_comes_up_as_the_file_says_and_goes_down(launched: Any, table: Any) -> None:
    done, folder = launched
    up = (folder / "up.log").read_text()
    there_before, *rest = done.stdout.split()[-4:]
    assert there_before != "0" and rest == ["0", "0", "0"], done.stderr + up  # `submit --up` asks for the head, and leaves one that is up
    steps = sorted(set(re.findall(r"\[(\d)/7\]", up)))
    commands = (folder / "commands.log").read_text().splitlines()
    before, after = (json.loads((folder / name).read_text()) for name in ("ec2.json", "ec2-after.json"))
    (head,) = before["instances"]
    (group,) = [one for one in before["groups"] if one["GroupId"] in {own["GroupId"] for own in head["SecurityGroups"]}]
    world = [rule for rule in group["IpPermissions"] for span in rule["IpRanges"] if span["CidrIp"] == "0.0.0.0/0"]
    starts = [line for line in commands if "ray start" in line]
    (container,) = [line for line in commands if "docker run" in line]
    left = [one for one in after["instances"] if one["State"]["Name"] not in ("terminated", "shutting-down")]
    rows = [
        {"what": "steps of ray up", "found": f"{len(steps)} of 7"},
        {"what": "remote commands, none to the network", "found": len(commands)},
        {"what": "head", "found": f"{head['InstanceType']}, {head['IamInstanceProfile']['Arn'].rpartition('/')[2]}, {group['GroupName']}"},
        {"what": "rules that let the world in", "found": len(world)},
        {"what": "start commands with token mode", "found": f"{sum('RAY_AUTH_MODE=token' in line for line in starts)} of {len(starts)}"},
        {"what": "autoscaler", "found": "v2" if "RAY_enable_autoscaler_v2=1" in starts[0] else "v1"},
        {"what": "installations on a node", "found": sum("pip install" in line for line in commands)},
        {"what": "instances after ray down", "found": len(left)},
    ]
    table("ray up, ray down (EC2: moto; ssh, rsync: stand-ins)", rows)
    assert steps == list("1234567") or steps == [str(n) for n in range(1, 8)]
    assert head["InstanceType"] == "m7i.2xlarge" and head["IamInstanceProfile"]["Arn"].endswith("/sft-diversity-head")
    assert group["GroupName"] == "sft-diversity" and not world and not left
    assert starts and all("RAY_AUTH_MODE=token" in line and "RAY_enable_autoscaler_v2=1" in line for line in starts)
    assert "RAY_grpc_client_keepalive_time_ms=10000" in container and "RAY_AUTH_TOKEN_PATH=" in container
    assert not any("pip install" in line for line in commands)
    told = "\n".join(commands) + up + (folder / "down.log").read_text()
    assert not [secret for secret in PLANTED if secret in told], "no secret is in an argument or a log"


def test_hadolint_has_nothing_to_say(tools: Path) -> None:
    done = subprocess.run([str(tools / "hadolint"), str(ROOT / "docker" / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
