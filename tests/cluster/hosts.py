"""Machines that `ray up` can have by SSH: each a network namespace with an address, a home and a /tmp of its own, and a real sshd.

They see this machine's files, and one folder that all share, `/srv/sft-diversity`. Docker alone is a stand-in (`machines/docker`). Needs
root, sshd and rsync.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.ray_jobs.heads import BINARIES, ROOT, wait_for

NET = "10.219.8"
SSHD = """
ListenAddress {address}:22
HostKey /srv/machine/host_key
AuthorizedKeysFile /srv/machine/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
PidFile none
MaxStartups 100
MaxSessions 100
"""
# Everything that a machine has of its own; what lies below the folders that are covered stays this machine's, and unseen.
BOOT = """
set -e
mount -t tmpfs tmpfs /srv
mkdir /srv/machine /srv/sft-diversity
mount --bind {folder} /srv/machine
mount --bind {shared} /srv/sft-diversity
mount --bind {folder}/passwd /etc/passwd
mount -t tmpfs tmpfs /run && mkdir /run/sshd
mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp
exec {sshd} -D -e -f /srv/machine/sshd_config
"""


@dataclass
class Hosts:
    """Running machines.

    Attributes:
        addresses: of all, the head's first.
        names: of their network namespaces.
        home: of the one who starts clusters on them, with his key and the token.
        shared: what they see as /srv/sft-diversity.
    """

    addresses: list[str]
    names: list[str]
    home: Path
    shared: Path

    @property
    def key(self) -> Path:
        """Return the private key that opens all machines."""
        return self.home / ".ssh" / "id_ed25519"

    @property
    def token(self) -> Path:
        """Return the file with the token of the cluster to be."""
        return self.home / ".ray" / "token" / "auth_token"

    def pids(self, name: str) -> list[int]:
        """Return the processes of a machine."""
        return list(map(int, subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout.split()))

    def nodes(self) -> int:
        """Return on how many machines a raylet runs."""
        return sum(any(_program(pid) == "raylet" for pid in self.pids(name)) for name in self.names)

    def at(self, number: int, command: str) -> subprocess.Popen[bytes]:
        """Start a command on a machine, as somebody who is logged in there; what it says goes into a file of home."""
        options = ["-i", self.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        with (self.home / f"at-{number}.log").open("ab") as log:
            line = ["ssh", *map(str, options), f"root@{self.addresses[number]}", f". ~/.bashrc; {command}"]
            return subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @cached_property
    def cluster_file(self) -> Path:
        """cluster/ssh.yaml for these machines, written once: addresses, user and key are theirs, all else is as it stands."""
        text = (ROOT / "cluster" / "ssh.yaml").read_text("utf-8")
        for before, after in {
            "head_ip: 192.0.2.10": f"head_ip: {self.addresses[0]}",
            "worker_ips: [192.0.2.11, 192.0.2.12]": f"worker_ips: [{', '.join(self.addresses[1:])}]",
            "ssh_user: ubuntu": "ssh_user: root",
            "ssh_private_key: ~/.ssh/id_ed25519": f"ssh_private_key: {self.key}",
        }.items():
            assert text.count(before) == 1
            text = text.replace(before, after)
        (self.home / "ssh.yaml").write_text(text, "utf-8")
        return self.home / "ssh.yaml"


def _program(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


@contextmanager
def running_hosts(folder: Path, count: int = 3) -> Iterator[Hosts]:
    """Have machines, and end them with all that runs there."""
    sshd = shutil.which("sshd", path="/usr/sbin")
    bridge = f"m{os.getpid()}"
    hosts = Hosts([f"{NET}.{n + 1}" for n in range(count)], [f"{bridge}n{n}" for n in range(count)], folder / "home", folder / "shared")
    for path in (hosts.key.parent, hosts.token.parent, hosts.shared):
        path.mkdir(parents=True)
    hosts.token.write_text(secrets.token_hex(16))
    hosts.token.chmod(0o600)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(hosts.key)], check=True)
    others = [line for line in Path("/etc/passwd").read_text().splitlines(keepends=True) if not line.startswith("root:")]
    passwd = "".join(["root:x:0:0::/srv/machine/root:/bin/bash\n", *others])
    bashrc = f"export PATH={Path(__file__).parent}/machines:$PATH RAY_BINARIES={BINARIES} REPOSITORY={ROOT}\n"
    servers: list[subprocess.Popen[bytes]] = []

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    try:
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", f"{NET}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for name, address in zip(hosts.names, hosts.addresses, strict=True):
            ip("netns", "add", name)
            ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", name, "master", bridge, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", f"{NET}.254")  # leads nowhere; by it Ray finds a machine's own address
            own = folder / name
            (own / "root").mkdir(parents=True)
            shutil.copy(hosts.key.with_suffix(".pub"), own / "authorized_keys")
            shutil.copy(hosts.key, own / "host_key")
            (own / "host_key").chmod(0o600)
            (own / "sshd_config").write_text(SSHD.format(address=address))
            (own / "passwd").write_text(passwd)
            (own / "root" / ".bashrc").write_text(bashrc)
            script = BOOT.format(folder=own, shared=hosts.shared, sshd=sshd)
            with (own / "sshd.log").open("wb") as log:
                command = ["ip", "netns", "exec", name, "sh", "-c", script]
                servers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            wait_for(lambda: "Server listening" in (own / "sshd.log").read_text() or servers[-1].poll() is not None, 20, "sshd")
            assert servers[-1].poll() is None, (own / "sshd.log").read_text()
        yield hosts
    finally:
        for name in hosts.names:
            for pid in hosts.pids(name):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)
        for server in servers:
            server.wait(10)
        subprocess.run(["ip", "link", "del", bridge], check=False)
