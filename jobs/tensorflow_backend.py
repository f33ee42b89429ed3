"""Ray Train's TensorFlow set-up, without its switch to Keras 2, and without TensorFlow.

Ray 2.60 sets TF_USE_LEGACY_KERAS=1 beside TF_CONFIG. We need TF_CONFIG alone: our loop of
`strategy.run` is right under Keras 3 (tests/test_training.py compares it with one worker). And
`ray.train.tensorflow` imports TensorFlow wherever it is imported: into the driver, and into each of
the actors that watch a run, which takes 5 s and 400 MB each time.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from ray.train.backend import Backend, BackendConfig


@dataclass
class TensorflowConfig(BackendConfig):
    """Tells each worker who the others are, through TF_CONFIG."""

    @property
    def backend_cls(self) -> type[Backend]:
        """Return the backend that runs when the workers have started."""
        return _TensorflowBackend


class _TensorflowBackend(Backend):
    def on_start(self, worker_group: Any, backend_config: TensorflowConfig) -> None:
        import ray

        addresses = worker_group.execute(_free_address)
        ray.get([
            worker_group.execute_single_async(index, _set_tf_config, addresses, index)
            for index in range(len(addresses))
        ])  # fmt: skip


def _free_address() -> str:
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _set_tf_config(addresses: list[str], index: int) -> None:
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
