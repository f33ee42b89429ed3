"""What all tests share: made-up photos, an S3 store, and an environment without the user's own."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import hypothesis
import numpy as np
import pytest
from PIL import Image

from tests import stores

# Before anything reads them, and for all processes that tests start: no credentials, no endpoint
# and no profile of whoever runs the tests.
for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ |= {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    # Ray's is 15: beside another process of the tests that computes, workers would get a 28th of a core.
    "RAY_worker_niceness": "0",
}

hypothesis.settings.register_profile("deblur", deadline=None)
hypothesis.settings.load_profile("deblur")


# The longest first, so that no process is left with one of them while the other has nothing to do.
_LONGEST = [
    "test_train.py",
    "test_faults.py",
    "test_demo.py",
    "test_training.py",
    "test_restore.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


class Photos:
    """Makes small pictures that look like photos to a coder: soft, with edges and some noise."""

    @staticmethod
    def pixels(
        height: int = 48, width: int = 64, *, seed: int = 0, dtype: type = np.uint8
    ) -> np.ndarray:
        """Return (height, width, 3) RGB over most of the range of `dtype`."""
        rng = np.random.default_rng(seed)
        picture = np.zeros((height, width, 3), np.float32)
        for cells, strength in ((3, 1.0), (8, 0.4), (24, 0.1)):
            grid = rng.random((cells, cells, 3), np.float32)
            picture += strength * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        picture[height // 3 : height // 2, width // 4 : width // 2] *= 0.6
        picture = (picture - picture.min()) / np.ptp(picture)
        picture += rng.normal(0, 0.004, picture.shape).astype(np.float32)
        top = np.iinfo(dtype).max
        return np.rint(np.clip(picture, 0, 1) * top).astype(dtype)

    @staticmethod
    def file(pixels: np.ndarray, format: str = "JPEG", **options: Any) -> bytes:
        """Return a file's bytes; `options` are Pillow's. (H, W) is grey, four channels are RGBA."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format, **options)
        return buffer.getvalue()

    def jpeg(self, height: int = 48, width: int = 64, *, seed: int = 0, **options: Any) -> bytes:
        """Return the bytes of a JPEG of 4:4:4 at quality 92, unless told otherwise."""
        pixels = self.pixels(height, width, seed=seed)
        return self.file(pixels, **{"quality": 92, "subsampling": 0} | options)


@pytest.fixture(scope="session")
def photos() -> Photos:
    return Photos()


@pytest.fixture(scope="session")
def credentials() -> Iterator[None]:
    """Have the credentials of both S3 stores in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="session")
def s3(credentials: None) -> Iterator[str]:
    """Run an S3 store and return its endpoint, which the environment names from here on."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def seaweed(
    credentials: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[stores.SeaweedFS]:
    """Run SeaweedFS, a real object store. Tests name its endpoint themselves."""
    if why := stores.why_no_seaweedfs():
        pytest.skip(why)
    server = stores.SeaweedFS(tmp_path_factory.mktemp("seaweed"))
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """Let a test change the environment that clients of S3 are made from."""
    from deblur.storage import s3

    s3._client.cache_clear()
    yield
    s3._client.cache_clear()


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch, fresh_clients: None) -> stores.Become:
    """Return a function that puts an identity's credentials into the environment."""

    from deblur.storage import s3

    def change(name: str, secret: str | None = None) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret or stores.IDENTITIES[name][0])
        # As in a process of its own: nothing has been done by these credentials yet.
        s3._client.cache_clear()
        s3._answered.clear()

    return change


_numbers = itertools.count()


@pytest.fixture
def bucket(s3: str) -> Callable[[], str]:
    """Return a function that makes an empty bucket and returns its URI, `s3://...`."""

    def make() -> str:
        import boto3

        name = f"bucket-{next(_numbers)}"
        boto3.session.Session().client("s3", endpoint_url=s3).create_bucket(Bucket=name)
        return f"s3://{name}"

    return make


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """Run an embedded Ray that the jobs of all tests join; its workers know the S3 store."""
    from jobs import runtime

    with runtime.cluster(runtime.Cluster(cpus=2)):
        yield


@pytest.fixture(scope="session")
def sharp_folder(tmp_path_factory: pytest.TempPathFactory, photos: Photos) -> Path:
    """Return a folder of two categories with nine photos each, one of them broken."""
    folder = tmp_path_factory.mktemp("sharp")
    for number, category in enumerate(("castle", "forest")):
        for index in range(9):
            path = folder / category / f"{index}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(photos.jpeg(280 + 8 * index, 300, seed=100 * number + index))
    (folder / "castle" / "8.jpg").write_bytes(b"\xff\xd8 this was a photo once")
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture(scope="session")
def made_pairs(
    tmp_path_factory: pytest.TempPathFactory, sharp_folder: Path, ray_cluster: None
) -> Path:
    """Return pairs of 256x256, eight to train on and four to test on."""
    from jobs import preprocess

    folder = tmp_path_factory.mktemp("pairs")
    preprocess.run(preprocess.Options(str(sharp_folder), str(folder), train=4, test=2))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model, untrained: for whoever asks not what it makes of a photo."""
    import keras

    from deblur import models
    from deblur.networks import network
    from deblur.storage import open_store

    folder, name = tmp_path_factory.mktemp("tiny"), "pix2pix-small"
    keras.utils.set_random_seed(0)
    generator = network(name).generator()
    # What comes out looks like what goes in: colours through the first level, and straight out again.
    first, last = generator.get_layer("down0_conv"), generator.get_layer("out_conv")
    averaged, spread = first.kernel.numpy(), last.kernel.numpy()
    for colour in range(3):
        averaged[:, :, colour, colour] += 1 / 16
        spread[:, :, colour, colour - averaged.shape[-1]] += 1 / 4
    first.kernel.assign(averaged)
    last.kernel.assign(spread)
    card = models.Card(
        "tiny", name, models.model_id(generator, name), recipe="box14", precision="float32",
        data={}, command="", steps=0, seconds=0, seed=0, licence="CC0-1.0",
    )  # fmt: skip
    models.save(open_store(folder), generator, card)
    return folder


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have restore's stages called here, one after another, for all that does not hang on who calls them.

    Ray starts an actor for each run, which takes a dozen seconds.
    """
    from jobs import restore, restore_plan

    def run_stages(
        todo: Any, source: Any, destination: Any, model: Any, options: Any, treatment: Any
    ) -> Iterator[dict[str, Any]]:
        fetch, deliver = restore._ends(source, destination, options, treatment)
        stage = _loaded(model, options.precision)
        for chunk in restore_plan.chunks(todo):
            for pack in fetch({"chunk": [chunk]}):
                for table in stage(pack):
                    done = deliver(table)
                    for row in zip(*done.values(), strict=True):
                        yield dict(zip(done, row, strict=True))

    monkeypatch.setattr(restore, "_restore", run_stages)


@functools.cache
def _loaded(model: Any, precision: str) -> Any:
    from jobs import restore_stages

    return restore_stages.Restore(model, precision)
