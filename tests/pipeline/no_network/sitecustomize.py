"""On PYTHONPATH of a test's processes: any connection that leaves this machine is refused and noted."""

import os
import socket

_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo
LOCAL = ("127.0.0.1", "::1", "localhost", "", None, socket.gethostname())


def _refuse_unless_local(host):
    if host not in LOCAL:
        with open(os.environ["VPO_LAB_TEST_CALLS"], "a") as file:
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
