"""Processes: one a device, started by torchrun or alone; DDP or FSDP2 between them."""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maskgit_pt import launch

PARALLEL = ("ddp", "fsdp")


class Processes:
    """This process and its peers.

    There is always a process group, also for a single process, so that nothing needs a special case.

    Args:
      device: "cuda", "cpu", or "" for CUDA where there is any.

    Attributes:
      rank, world_size: as torchrun numbers them.
      device: what this process computes on.
      control: a group on the CPU for flags and checkpoints; never used by two threads at once.
      saving: another one, for the thread that writes checkpoints.

    Raises:
      ValueError: no such device, or fewer GPUs than processes.
    """

    def __init__(self, device: str = ""):
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if kind not in ("cuda", "cpu"):
            raise ValueError(f"--device is {device!r}; accepted: cuda, cpu")
        launch.end_with_torchrun()
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.device = torch.device(kind)
        if kind == "cuda":
            if local_rank >= torch.cuda.device_count():
                raise ValueError(
                    f"process {local_rank} of this machine has no GPU; found {torch.cuda.device_count()}"
                )
            self.device = torch.device("cuda", local_rank)
            torch.cuda.set_device(self.device)
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=datetime.timedelta(minutes=30))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        self.control = dist.new_group(backend="gloo")
        self.saving = dist.new_group(backend="gloo")

    @property
    def is_main(self) -> bool:
        """Whether this is the one that prints and writes."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        if self.world_size == 1:
            return flag
        value = torch.tensor(int(flag))
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.control)
        return bool(value)

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes of a CPU tensor."""
        if self.world_size > 1:
            values = values.clone()
            dist.all_reduce(values, group=self.control)
        return values

    def barrier(self) -> None:
        """Waits for the others."""
        dist.barrier(group=self.control)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Lets the main process finish what the others then find done."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def close(self) -> None:
        """Ends the group."""
        dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # After an error the others may be in the middle of a collective call, and leaving in order could
        # wait for them; torchrun ends them.
        if error is None or self.world_size == 1:
            self.close()


def parallelize(
    module: nn.Module, blocks: list[nn.Module], processes: Processes, kind: str, dtype: torch.dtype
) -> nn.Module:
    """Spreads a module over the processes.

    Args:
      module: on its device; its `forward` is what training calls.
      blocks: its repeated layers, the units of FSDP2.
      processes: from `Processes`.
      kind: "ddp", or "fsdp": parameters, gradients and optimizer state are sharded.
      dtype: FSDP2 gathers the parameters in this dtype; gradients are reduced in float32.

    Returns:
      The module to call; with DDP a wrapper, with FSDP2 `module` itself, changed in place.
    """
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        mesh = init_device_mesh(processes.device.type, (processes.world_size,))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        return fully_shard(module, mesh=mesh, mp_policy=policy)
    if processes.world_size == 1:
        return module
    devices = [processes.device.index] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=devices, gradient_as_bucket_view=True
    )


def without_gradient_sync(module: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Leaves gradients unreduced in all but the last part of an accumulated batch."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        return module.no_sync()
    set_sync: Callable | None = getattr(module, "set_requires_gradient_sync", None)
    if set_sync is not None:  # FSDP2
        set_sync(last)
    return contextlib.nullcontext()
