"""Copied to a folder on PYTHONPATH of a test's processes: any connection that leaves this machine is refused, and
noted in calls.txt beside this file."""

import socket
from pathlib import Path

_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo
LOCAL = ("127.0.0.1", "::1", "localhost", "", None, socket.gethostname())


def _refuse_unless_local(host):
    if host not in LOCAL:
        with open(Path(__file__).with_name("calls.txt"), "a") as file:
            file.write(f"{host}\n")
        raise OSError(f"the tests block the network: {host}")


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _refuse_unless_local(address[0])
    return _connect(self, address)


def getaddrinfo(host, *arguments, **options):
    _refuse_unless_local(host)
    return _getaddrinfo(host, *arguments, **options)


socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
