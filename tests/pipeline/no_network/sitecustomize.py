"""On PYTHONPATH of a test's processes: any connection that leaves this machine is refused and noted."""

import os
import socket

_connect = socket.socket.connect


def _local_only(self, address):
    host = address[0] if isinstance(address, tuple) else "local"
    if self.family in (socket.AF_INET, socket.AF_INET6) and host not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["VPO_LAB_TEST_CALLS"], "a") as file:
            file.write(f"{address}\n")
        raise OSError(f"the tests block the network: {address}")
    return _connect(self, address)


socket.socket.connect = _local_only
