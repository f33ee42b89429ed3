"""Where the keys for S3 come from, and what of it pyarrow is told."""

from __future__ import annotations

import http.server
import io
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse

from deblur import storage
from deblur.errors import UsageError
from deblur.storage import S3Store
from tests.stores import serving


class _Role(http.server.BaseHTTPRequestHandler):
    """A store and the service that gives keys for a role: new ones each time, as they soon expire."""

    given: int
    used: list[tuple[str, str]]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).given += 1
        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 5))
        self._answer(
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
            f"<Credentials><AccessKeyId>ASIA{self.given}</AccessKeyId><SecretAccessKey>secret"
            f"</SecretAccessKey><SessionToken>secret</SessionToken><Expiration>{soon}</Expiration>"
            "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
        )

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization", "Credential=nobody/")
        self.used.append((self.command, authorization.split("Credential=")[1].split("/")[0]))
        self._answer("whole")

    do_HEAD = do_GET

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("ETag", '"e"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


class _Metadata(http.server.BaseHTTPRequestHandler):
    """Amazon's service that tells of a machine's role: it is too busy at first."""

    refusals: int

    def do_PUT(self) -> None:
        type(self).refusals -= 1
        self._answer("token")

    def do_GET(self) -> None:
        role = {
            "Code": "Success", "AccessKeyId": "ASIA", "SecretAccessKey": "s", "Token": "t",
            "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        self._answer("role" if self.path.endswith("/") else json.dumps(role))

    def _answer(self, text: str) -> None:
        self.send_response(503 if self.refusals >= 0 else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize("answered", [False, True])
def test_a_role_that_is_late_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, fresh_clients: None, answered: bool
) -> None:
    _Role.given, _Role.used = 0, []
    _Metadata.refusals = 5  # more than one client asks for
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    with serving(_Metadata) as metadata, serving(_Role) as endpoint:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
        store = S3Store("s3://bucket", endpoint, answered)
        if answered:
            assert store.read("a") == b"whole"
        else:
            with pytest.raises(UsageError, match="no S3 credentials were found"):
                store.read("a")


def test_the_metadata_service_is_asked_with_patience() -> None:
    names = ["AWS_METADATA_SERVICE_NUM_ATTEMPTS", "AWS_METADATA_SERVICE_TIMEOUT"]
    code = f"import os, deblur.storage; print(*[os.environ[name] for name in {names}])"
    for own, expected in (({}, "2 2"), ({"AWS_METADATA_SERVICE_TIMEOUT": "7"}, "2 7")):
        clean = {
            name: value for name, value in os.environ.items() if "METADATA_SERVICE" not in name
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=clean | own,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == expected.split()


# === pyarrow ===


class _Nothing(io.BytesIO):
    """The body of an answer to HEAD, as urllib3 has it."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        return iter(())


@pytest.mark.parametrize("status", [200, 403])
def test_arrow_goes_to_the_region_of_the_bucket(
    credentials: None, monkeypatch: pytest.MonkeyPatch, fresh_clients: None, status: int
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    store = S3Store("s3://far-away/p", None)
    asked: list[str] = []

    def answer(request: Any, **_: Any) -> Any:
        asked.append(request.url)
        headers = {"x-amz-bucket-region": "eu-central-1"}
        there = ".eu-central-1." in request.url
        return AWSResponse(request.url, status if there else 301, headers, _Nothing())

    # In place of the network.
    storage.s3._client(None).client.meta.events.register("before-send.s3", answer)
    filesystem, path = store.arrow()
    assert (filesystem.region, path) == ("eu-central-1", "far-away/p")
    assert len(asked) == 2


def test_arrow_has_the_keys_of_a_profile_s_role_as_long_as_it_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_clients: None
) -> None:
    _Role.given, _Role.used = 0, []
    (tmp_path / "config").write_text(
        "[profile work]\nrole_arn = arn:aws:iam::123456789012:role/r\nsource_profile = base\n"
        "region = eu-central-1\n[profile base]\nregion = eu-central-1\n"
    )
    (tmp_path / "keys").write_text(
        "[base]\naws_access_key_id = BASE\naws_secret_access_key = secret\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    with serving(_Role) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
        filesystem, path = S3Store("s3://bucket", endpoint).arrow()
        pickled = pickle.dumps(filesystem)
        assert b"secret" not in pickled
        assert b"ASIA" not in pickled
        for found in (filesystem, filesystem, pickle.loads(pickled)):
            with found.open_input_file(f"{path}/a") as file:
                assert file.read() == b"whole"
        assert pickle.loads(pickled) == filesystem
    readers = [key for method, key in _Role.used if method == "GET"]
    assert all(key.startswith("ASIA") for _, key in _Role.used)
    assert len(set(readers)) == 3, "a new key each time"
