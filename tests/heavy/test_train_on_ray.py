"""Training on the nodes of a Ray cluster, of which two run on this machine: the run of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ONE_THREAD, ROOT
from heavy import heavy
from trainer import ADAMW, RHYTHM, SHAPE, assert_like, flags, train, well, write_text

heavy("ray")
cluster_utils = heavy("ray.cluster_utils")

pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]  # Ray's own warnings
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


def test_a_cluster_of_two_nodes(tmp_path: Path) -> None:
    text = write_text(tmp_path / "tales.txt", n_documents=40)
    well(train(*flags(text, tmp_path / "alone", *SHAPE, *ADAMW, *RHYTHM)))
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        cluster.add_node(**NODE)
        script = (sys.executable, str(ROOT / "scripts" / "train_on_ray.py"))
        where = ("--address", str(cluster.address), "--nodes", "2", "--")
        more = flags(text, tmp_path / "out", *SHAPE, *RHYTHM, "--shard", "--resume")
        env = os.environ | ONE_THREAD | {"GLOO_SOCKET_IFNAME": "lo"}
        done = subprocess.run([*script, *where, *more], env=env, capture_output=True, text=True, timeout=300)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert_like(tmp_path / "out", tmp_path / "alone")
