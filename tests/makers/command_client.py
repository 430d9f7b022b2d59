"""Runs the command it is called as in a process forked by `command_server.py`, with its own pipes and folder.

`commands.py` installs it under the names of the commands, next to the server's socket. It imports little
and ends as the command does.
"""

import json
import os
import signal
import socket
import sys

folder, name = os.path.split(sys.argv[0])
command = [os.path.join(os.path.dirname(sys.executable), name), *sys.argv[1:]]  # noqa: PTH118, PTH120
request = json.dumps({"command": command, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()  # noqa: PTH109
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.path.join(folder, "socket"))  # noqa: PTH118
    socket.send_fds(server, [len(request).to_bytes(8)], [0, 1, 2])
    server.sendall(request)
    status = int(server.recv(16) or 1)
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
