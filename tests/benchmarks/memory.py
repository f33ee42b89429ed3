"""Peak memory of the processes of `deblur restore`, by stage and by size of photo.

    python -m tests.benchmarks.memory [--megapixels 1 10 50 100] [--deep 100] [--model MODEL]

Each case is one photo, a sample of the package repeated to that size, through the real job on an
embedded Ray: as JPEG, and of 16 bits as PNG and TIFF. The model is pix2pix-small with random
weights, unless one is given. Every 20 ms each worker's memory is read from /proc: `private` is what
the process has for itself, `shared` what it has seen of Ray's object store, which the machine has
once for all of them, and `whole` its peak of both (VmHWM). A stage's figures are those of the
process that had most; one worker may take turns at the first and the last.

In MB, 2026-11, private and shared, of fetching, restoring and delivering a photo of:

    0.1 megapixels          220 +    0    840 +    0    225 +    0
    50, JPEG                570 +  145   1040 +  285    520 +  285
    50, 16 bits, PNG, TIFF  950 +  285   1180 +  570    600 +  570
    100, JPEG               930 +  285   1205 +  570    750 +  570
    100, 16 bits, PNG      1680 +  570   1475 + 1145    850 + 1145
    100, 16 bits, TIFF     1685 +  570   1490 + 1145    850 + 1145

Restoring by `box14`, whose tiles are up to four times as wide: 895 for the least, and of 100
megapixels 1645 for JPEG and 1950 for 16 bits.

The bound of 2 GiB a worker is on what is private: the other is Ray's, and on the machine once. `whole`
is below it for 50 megapixels (1845 MB) and for JPEGs of 100 (1775), and 2600 for 100 of 16 bits.
The files of 100 megapixels with 16 bits had 530 MB. The actor's 840 are TensorFlow and the model.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests import processes

STAGES = {"Fetch": "fetch", "Restore": "restore", "Deliver": "deliver"}
_EVERY_S = 0.02


def photo_file(megapixels: float, kind: str) -> tuple[str, bytes]:
    """Return the name and the bytes of a photo of 4:3, `kind` being jpg, png16 or tif16."""
    from importlib.resources import files

    import numpy as np

    from deblur import photo

    sample = photo.decode(
        next(
            file.read_bytes()
            for file in sorted((files("deblur") / "samples" / "landscape").iterdir(), key=str)
            if file.name.endswith(".jpg")
        )
    ).pixels
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    height = round(megapixels * 1e6 / width)
    # Repeated and not enlarged: as much detail a pixel as the photo has.
    times = [-(-side // have) for side, have in zip((height, width), sample.shape, strict=False)]
    pixels = np.tile(sample, (*times, 1))[:height, :width]
    if kind == "jpg":
        return "photo.jpg", photo.encode(photo.Photo(pixels, format="JPEG"))
    deep = pixels.astype(np.uint16) << 8
    deep += np.random.default_rng(0).integers(0, 256, deep.shape, np.uint16)  # noise, as there is
    name, format = {"png16": ("photo.png", "PNG"), "tif16": ("photo.tif", "TIFF")}[kind]
    return name, photo.encode(photo.Photo(deep, format=format))


class Watch:
    """Reads the memory of this process' Ray workers until it is left; then `peaks` has it in MB."""

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._stage: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            for pid, title in processes.below(os.getpid()):
                if title.startswith("ray::"):
                    stage = next((name for word, name in STAGES.items() if word in title), None)
                    self._read(pid, stage)

    def _read(self, pid: int, stage: str | None) -> None:
        # A worker that takes turns at the stages counts for the one that it is at.
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        if "RssAnon" not in values:
            return
        names = ("RssAnon", "RssFile", "RssShmem", "VmHWM")
        anon, file, shmem, peak = (int(values[name].split()[0]) // 1024 for name in names)
        peaks = self.peaks[stage or "between"]
        for name, value in (("private", anon + file), ("shared", shmem), ("whole", peak)):
            peaks[name] = max(peaks[name], value)


def random_model(folder: str) -> None:
    """Write a pix2pix-small of random weights."""
    from deblur import models
    from deblur.networks import network
    from deblur.storage import open_store

    name = "pix2pix-small"
    generator = network(name).generator()
    card = models.Card(
        name="random", network=name, model_id=models.model_id(generator, name), recipe="box14",
        precision="float32", data={}, command="", steps=0, seconds=0.0, seed=0,
    )  # fmt: skip
    models.save(open_store(folder), generator, card)


def measure(name: str, data: bytes, model: str) -> dict[str, Any]:
    """Restore one photo by a job of its own, and say what its processes took."""
    from jobs import restore, runtime

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in")
        source.mkdir()
        (source / name).write_bytes(data)
        options = restore.Options(str(source), f"{folder}/out", model=model, no_guard=True)
        with (
            contextlib.redirect_stderr(io.StringIO()),
            runtime.cluster(runtime.Cluster()),
            Watch() as watch,
        ):
            started = time.perf_counter()
            summary = restore.run(options)
        this_run = summary["this_run"]
        return {
            "seconds": round(time.perf_counter() - started, 1),
            "restored": this_run["restored"],
        } | {stage: dict(peaks) for stage, peaks in watch.peaks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="*", default=[1, 10, 50, 100])
    parser.add_argument("--deep", type=float, nargs="*", default=[100])
    parser.add_argument("--model")
    arguments = parser.parse_args()
    cases = [(0.1, "jpg")] + [(size, "jpg") for size in arguments.megapixels]
    cases += [(size, kind) for size in arguments.deep for kind in ("png16", "tif16")]
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.model:
            random_model(folder)
        for megapixels, kind in cases:
            name, data = photo_file(megapixels, kind)
            found = measure(name, data, arguments.model or folder)
            case = {"megapixels": megapixels, "kind": kind, "file_mb": round(len(data) / 1e6, 1)}
            print(json.dumps(case | found), flush=True)


if __name__ == "__main__":
    main()
