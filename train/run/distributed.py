"""Networks spread over processes: DDP or FSDP2."""

import contextlib
from collections.abc import Callable

from torch import nn

from maskgit_pt.launch import Processes

PARALLEL = ("ddp", "fsdp")


def parallelize(
    module: nn.Module, blocks: list[nn.Module], processes: Processes, kind: str
) -> nn.Module:
    """Spreads a module over the processes.

    Args:
      module: on its device; its `forward` is what training calls.
      blocks: its repeated layers, the units of FSDP2.
      processes: from `Processes`.
      kind: "ddp", or "fsdp": parameters, gradients and optimizer state are sharded. Both keep parameters
        and gradients in float32, so that a run may go on with the other; autocast rounds where it is safe.

    Returns:
      The module to call; with DDP a wrapper, with FSDP2 `module` itself, changed in place.
    """
    if kind == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(processes.device.type, (processes.world_size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        return fully_shard(module, mesh=mesh)
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
