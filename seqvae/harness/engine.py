"""Devices, precision and processes: the one module that knows Lightning Fabric."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.seed import seed_everything
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed", "bf16-true")

T = TypeVar("T")


class Engine:
    """One of `world_size` processes that train one module together."""

    def __init__(self, devices: int | str = "auto", precision: str = "32-true") -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if devices != "auto" and (isinstance(devices, bool) or not isinstance(devices, int) or devices < 1):
            raise ValueError(f"trainer.devices must be a positive int or auto, got {devices!r}")
        if devices == "auto" and not torch.cuda.is_available():
            devices = 1  # Fabric's own choice for a CPU; said here because more CPU processes are a choice to make
        self.fabric = Fabric(accelerator="auto", devices=devices, precision=precision)  # type: ignore[arg-type]

    def launch(self) -> None:
        """Start the other processes where this is the one that starts them; each goes on from here."""
        self.fabric.launch()

    @property
    def rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world_size(self) -> int:
        return self.fabric.world_size

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files."""
        return self.fabric.is_global_zero

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def seed(self, seed: int) -> None:
        """Seed this process's global generators, every rank differently."""
        seed_everything(seed + self.rank, verbose=False)

    def setup(self, module: nn.Module, optimizer: Optimizer) -> tuple[_FabricModule, Optimizer]:
        """Return the module and the optimizer made ready for the device, the precision and the other processes."""
        wrapped, prepared = self.fabric.setup(module, optimizer)
        return wrapped, cast("Optimizer", prepared)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, module: nn.Module, optimizer: Optimizer, norm: float) -> Tensor:
        """Scale the gradients to at most `norm`; return the norm they had. RuntimeError if not finite."""
        total = self.fabric.clip_gradients(module, optimizer, max_norm=norm, error_if_nonfinite=True)
        assert total is not None
        return total

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return cast("Tensor", self.fabric.all_reduce(value, reduce_op="sum"))

    def gather(self, value: Tensor) -> list[Tensor]:
        """Return the tensor of every process, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        gathered = [torch.empty_like(value) for _ in range(self.world_size)]
        torch.distributed.all_gather(gathered, value)
        return gathered

    def broadcast(self, value: T) -> T:
        """Return what the main process has."""
        return self.fabric.broadcast(value)

    def barrier(self) -> None:
        self.fabric.barrier()
