"""Trains on the nodes of a Ray cluster: one torchrun agent on each, which Ray starts again if its node is lost.

    python scripts/train_on_ray.py --nodes 2 --processes 8 --gpus 8 -- --data corpus/ --out /shared/run --shard --resume

What follows `--` are the flags of `minigpt train`. The agents meet on the node of the first one.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

REJOIN = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # docs/scale.md says why


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--address", default="auto", help="the cluster's; default: the one of this machine")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1, help="on each node")
    parser.add_argument("--gpus", type=int, default=0, help="on each node")
    parser.add_argument("flags", nargs="+", help="of minigpt train, after --")
    args = parser.parse_args()
    ray.init(address=args.address)
    kind = {"GPU": args.gpus} if args.gpus else {"CPU": args.processes}
    nodes = placement_group([kind] * args.nodes, strategy="STRICT_SPREAD")  # each bundle on a node of its own
    ray.get(nodes.ready())
    endpoint = ray.get(on_node(free_endpoint, nodes, 0).remote())
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-id", endpoint, "--rdzv-endpoint", endpoint)
    counts = ("--nnodes", str(args.nodes), "--nproc-per-node", str(args.processes), "--max-restarts", "3")
    agents = [
        on_node(agent, nodes, i, **kind).remote([*counts, *rendezvous], is_host=i == 0, flags=args.flags)
        for i in range(args.nodes)
    ]
    return max(ray.get(agents))


def on_node(
    task: ray.remote_function.RemoteFunction, nodes: PlacementGroup, i: int, **kind: int
) -> ray.remote_function.RemoteFunction:
    """A task that runs on the i-th node, and has so many of its processors or GPUs."""
    where = PlacementGroupSchedulingStrategy(placement_group=nodes, placement_group_bundle_index=i)
    return task.options(scheduling_strategy=where, num_cpus=kind.get("CPU", 0), num_gpus=kind.get("GPU", 0))


@ray.remote
def free_endpoint() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


@ray.remote(max_retries=3)
def agent(torchrun: list[str], is_host: bool, flags: list[str]) -> int:
    """Runs torchrun on this node; its exit code."""
    own = ("--local-addr", ray.util.get_node_ip_address(), "--rdzv-conf", f"is_host={int(is_host)}")
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, *own, "-m", "minigpt.train", *flags]
    return subprocess.run(command, env=os.environ | REJOIN, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
