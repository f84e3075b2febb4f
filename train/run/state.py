"""What a run is at a step: everything that a checkpoint holds, and nothing else."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

MODELS, AVERAGES, OPTIMIZERS = "models", "averages", "optimizers"


@dataclasses.dataclass
class TrainState:
    """Weights, their averages, optimizers and the sums of the metrics since the last log line.

    Random numbers need no place here: all of them depend on the seed and the step.

    Attributes:
      models: what is trained, by name.
      averages: their moving averages, by the same names; may be empty.
      optimizers: by name of the model.
      sums: float64 [2, metrics], of this process (see `metrics.Metrics`).
      step: how many steps are done.
    """

    models: dict[str, nn.Module]
    averages: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sums: Tensor
    step: int = 0

    def state_dict(self) -> dict[str, Any]:
        """By parameter names, the same for one process, DDP and FSDP2; shares memory with the state."""
        return {
            MODELS: {name: get_model_state_dict(model) for name, model in self.models.items()},
            AVERAGES: {name: get_model_state_dict(model) for name, model in self.averages.items()},
            OPTIMIZERS: {
                name: get_optimizer_state_dict(self.models[name], optimizer)
                for name, optimizer in self.optimizers.items()
            },
            "step": torch.tensor(self.step),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, model in self.models.items():
            set_model_state_dict(model, state[MODELS][name])
        for name, model in self.averages.items():
            set_model_state_dict(model, state[AVERAGES][name])
        for name, optimizer in self.optimizers.items():
            set_optimizer_state_dict(self.models[name], optimizer, state[OPTIMIZERS][name])
        self.step = int(state["step"])


def whole_weights(model: nn.Module, everywhere: bool = False) -> dict[str, Tensor]:
    """The full weights: on the CPU of the main process, empty elsewhere; or on every process's device.

    Called by all processes.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=not everywhere)
    return get_model_state_dict(model, options=options)
