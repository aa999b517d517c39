"""Machines on a machine: network namespaces, one for each host, and a cable to a switch that a test may cut.

python hosts.py LEFT RIGHT DELAY LOSS    carries frames between two interfaces, some late, some never
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ADDRESSES = ("10.213.0.1", "10.213.0.2")
NAMES = Path("/etc/netns")  # what `ip netns exec` puts in the place of files of /etc
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h


def run_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def can_make_hosts() -> bool:
    """Whether this process may make network namespaces."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"metarun-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


def answer_names_at_once(namespace: str) -> None:
    """Refuse to look up names: torch asks for the name of each address, and would wait for a server not there."""
    (NAMES / namespace).mkdir(parents=True)
    (NAMES / namespace / "resolv.conf").write_text("nameserver 127.0.0.1\n")


def send_whole_checksums(interface: str) -> None:
    """Have the kernel compute the checksums of packets, which it leaves to the hardware of a network card."""
    setting = array.array("I", [ETHTOOL_STXCSUM, 0])
    request = struct.pack("16sP", interface.encode(), setting.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, request)


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface, `eth`, at `address`; its cable ends at `plug`, beside the test."""

    name: str
    address: str
    plug: str

    @property
    def prefix(self) -> list[str]:
        """Begins a command on this host."""
        return ["ip", "netns", "exec", self.name]

    def cut_off(self) -> None:
        """Pull the cable out: what is sent is lost, and every connection stays open."""
        run_ip("link", "set", self.plug, "down")


@contextlib.contextmanager
def two_hosts(delay: float = 0.0, loss: float = 0.0) -> Iterator[list[Host]]:
    """Two hosts, joined by a process that carries their frames: `delay` seconds late, each lost with a probability."""
    number = os.getpid() % 100_000
    hosts = [Host(f"metarun-{number}-{i}", ADDRESSES[i], f"mr{number}-{i}") for i in range(2)]
    try:
        for host in hosts:
            run_ip("netns", "add", host.name)
            answer_names_at_once(host.name)
            run_ip("link", "add", host.plug, "type", "veth", "peer", "name", f"{host.plug}e")
            send_whole_checksums(f"{host.plug}e")
            run_ip("link", "set", f"{host.plug}e", "netns", host.name, "name", "eth")
            run_ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "eth")
            # Frames of one packet each, as a cable has them, and not ones that the interface would have to cut up.
            run_ip("-n", host.name, "link", "set", "eth", "up", "gso_max_size", "1500", "gso_max_segs", "1")
            run_ip("-n", host.name, "link", "set", "lo", "up")
            run_ip("link", "set", host.plug, "up")
        command = [sys.executable, __file__, hosts[0].plug, hosts[1].plug, str(delay), str(loss)]
        with subprocess.Popen(command) as switch:
            try:
                yield hosts
            finally:
                switch.terminate()
    finally:
        for host in hosts:
            shutil.rmtree(NAMES / host.name, ignore_errors=True)
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", host.plug], check=False, capture_output=True)


def carry(left: str, right: str, delay: float, loss: float) -> None:
    """Carry frames between two interfaces until the process is terminated."""
    ends = []
    for name in (left, right):
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
        end.bind((name, 0))
        end.setblocking(False)
        ends.append(end)
    draws, number = random.Random(0), 0
    waiting: list[tuple[float, int, socket.socket, bytes]] = []
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for end in select.select(ends, [], [], pause)[0]:
            with contextlib.suppress(OSError):  # the cable has been cut
                frame, sender = end.recvfrom(65536)
                if sender[2] != socket.PACKET_OUTGOING and draws.random() >= loss:
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + delay, number, ends[end is ends[0]], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            *_, other, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):
                other.send(frame)


if __name__ == "__main__":
    carry(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
