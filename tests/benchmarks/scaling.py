"""Weak scaling of `deblur train`, one core a worker: two workers with twice the batch against one.

    python -m tests.benchmarks.scaling PAIRS [--batch 1] [--steps 40] [--rounds 3]

The whole job is bound to as many cores as it has workers: its Ray, the making of its examples and
the store of its checkpoints run on them as well. Rates come from its TensorBoard events, whose first
entries (tracing) are left out. Where the rest goes: the share of time waiting for data, the all-reduce
of as many gradients by itself in two processes of one core each, and the same step without the job
on one core, while the other is idle and while it does the same.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from tests.benchmarks import training

ALL_REDUCE = """
import statistics, time
import tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
options = tf.distribute.experimental.CommunicationOptions(
    implementation=tf.distribute.experimental.CommunicationImplementation.RING)
strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
sizes = [4_000_000] * 14 + [1_183_620]  # 57,183,620, in tensors as large as pix2pix's
@tf.function
def reduce(tensors):
    def sum_up(tensors):
        here = [tf.identity(tensor) for tensor in tensors]  # on the replica's device
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)
    return strategy.run(sum_up, args=(tensors,))
tensors = [tf.random.normal((size,)) for size in sizes]
seconds = []
for _ in range(8):
    started = time.perf_counter()
    reduce(tensors)[0].numpy()
    seconds.append(time.perf_counter() - started)
print(statistics.median(seconds[2:]))
"""

STEP = """
import sys
import tensorflow as tf
from tests.benchmarks import training
tf.config.threading.set_intra_op_parallelism_threads(1)
print(training.bare(int(sys.argv[1]), int(sys.argv[2])))
"""


def job(pairs: str, workers: int, batch: int, steps: int) -> tuple[float, float]:
    """Return images a second, and the share of time waiting for data."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable, "-m", "jobs.cli", "train", pairs, folder, "--workers", str(workers),
            "--batch-size", str(batch * workers), "--max-steps", str(steps), "--epochs", "10000",
            "--validate-every", "10000", "--validation-photos", "1", "--checkpoint-steps", "1000000",
            "--cpus", str(workers),
        ]  # fmt: skip
        _bound(words, range(workers))
        return training.rates(folder)


def _bound(words: list[str], cores: range) -> None:
    listed = ",".join(map(str, cores))
    subprocess.run(["taskset", "-c", listed, *words], check=True, capture_output=True)


def side_by_side(code: str, count: int, *arguments: str, together: bool) -> list[float]:
    """Run some code in `count` processes, one a core, at the same time; return what each prints."""
    ports = []
    for _ in range(count):
        with socket.create_server(("127.0.0.1", 0)) as server:
            ports.append(server.getsockname()[1])
    addresses = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for rank in range(count):
        environment = dict(os.environ)
        if together:
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            environment["TF_CONFIG"] = json.dumps(task)
        words = ["taskset", "-c", str(rank), sys.executable, "-c", code, *arguments]
        processes.append(
            subprocess.Popen(
                words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
    return [float(process.communicate()[0].split()[-1]) for process in processes]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pairs")
    parser.add_argument("--batch", type=int, default=1, help="of each worker")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    batch, steps = arguments.batch, arguments.steps
    efficiencies = []
    for _ in range(arguments.rounds):
        started = time.perf_counter()
        one, waits_one = job(arguments.pairs, 1, batch, steps)
        two, waits_two = job(arguments.pairs, 2, batch, steps)
        efficiencies.append(two / (2 * one))
        print(
            f"one worker {one:.3f} images/s (waits {waits_one:.1%}), two {two:.3f} (waits "
            f"{waits_two:.1%}): efficiency {efficiencies[-1]:.2f} ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    words = [str(batch), str(steps // 2)]
    (alone,) = side_by_side(STEP, 1, *words, together=False)
    both = statistics.mean(side_by_side(STEP, 2, *words, together=False))
    reduced = statistics.mean(side_by_side(ALL_REDUCE, 2, together=True))
    print(
        f"median efficiency {statistics.median(efficiencies):.2f}; a step without the job {alone:.3f} s alone, "
        f"{both:.3f} s beside another; all-reduce of 57,183,620 float32 {reduced:.3f} s"
    )


if __name__ == "__main__":
    main()
