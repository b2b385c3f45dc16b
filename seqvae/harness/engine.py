"""Devices, precision and processes: the one module that knows Lightning Fabric."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import AbstractContextManager
from copy import deepcopy
from datetime import timedelta
from typing import TypeVar, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.seed import seed_everything
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim import Optimizer

from seqvae.objectives import BatchMean, batch_mean

log = logging.getLogger(__name__)

# no 16-mixed: it would need a loss scaler, whose skipped steps are the very ones the NaN watchdog stops at
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true")

T = TypeVar("T")


class Engine:
    """One of `world_size` processes that train one module together.

    Raises:
        ValueError: for a precision or a number of devices that there is not.
    """

    def __init__(
        self,
        devices: int | str = "auto",
        precision: str = "32-true",
        timeout_minutes: float = 10.0,
        deterministic: bool = False,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.precision = precision
        here, nodes = _layout(devices)
        accelerators = torch.cuda.device_count() or int(torch.backends.mps.is_available())
        if 0 < accelerators < here:
            log.warning("%d processes on this machine and %d GPU: they train on the CPU", here, accelerators)
        self.fabric = Fabric(
            accelerator="auto" if here <= accelerators else "cpu",
            devices=here,
            num_nodes=nodes,
            # the timeout bounds how long the others wait for a rank that no longer answers
            strategy=DDPStrategy(timeout=timedelta(minutes=timeout_minutes)) if here * nodes > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else CUDA's matrix products refuse
        torch.use_deterministic_algorithms(deterministic)

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

    def rehearse(self, module: nn.Module, x: Tensor) -> None:
        """Try one forward and backward pass of a copy of the module, and leave no trace.

        Raises:
            ValueError: for parts that do not go together, or a module that this machine cannot train in this precision.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        precision = self.fabric.strategy.precision
        try:
            with torch.random.fork_rng(devices), precision.forward_context():
                precision.convert_module(deepcopy(module)).to(self.device)(x.to(self.device), 0.0).loss.backward()
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if self.precision == "32-true":
                raise
            raise ValueError(
                f"trainer.precision={self.precision} does not work for this model on this machine "
                f"({self.device.type}: {str(error).splitlines()[0]}); use trainer.precision=32-true"
            ) from error

    def setup(self, module: nn.Module, optimizer: Optimizer, compile: bool) -> tuple[_FabricModule, Optimizer]:
        """Return the module and the optimizer made ready for the device, the precision and the other processes."""
        if compile:
            module = cast("nn.Module", torch.compile(module))
        if self.world_size > 1:  # DDP's: a 1x1 convolution's gradient has other strides, and the same numbers in order
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        wrapped, prepared = self.fabric.setup(module, optimizer)
        return wrapped, cast("Optimizer", prepared)

    def accumulating(self, module: _FabricModule, more: bool) -> AbstractContextManager[None]:
        """Return a context for a part of a step: with more parts to come, gradients stay in this process."""
        return self.fabric.no_backward_sync(module, enabled=more)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, module: nn.Module, optimizer: Optimizer, norm: float) -> Tensor:
        """Scale the gradients to at most `norm`; return the norm they had, finite or not."""
        total = self.fabric.clip_gradients(module, optimizer, max_norm=norm, error_if_nonfinite=False)
        assert total is not None
        return total

    def batch_mean(self, examples: int) -> BatchMean:
        """Return what takes a mean over the batches of all processes, of which `examples` rows are in this one.

        Its value is the mean over all of them. Its gradient is that of this process's own mean, because the trainer
        weighs the loss by `examples` and DDP adds the processes up. Every process must call it equally often.
        """
        if self.world_size == 1:
            return batch_mean

        def mean(values: Tensor) -> Tensor:
            here = batch_mean(values)
            weighed = torch.cat([here.detach() * examples, here.new_tensor([examples])])
            total = self.sum(weighed)
            return here + (total[:-1] / total[-1] - here.detach())

        return mean

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world_size == 1:
            return value
        return cast("Tensor", self.fabric.all_reduce(value.to(self.device), reduce_op="sum"))

    def largest(self, value: int) -> int:
        """Return the largest value that any process has."""
        if self.world_size == 1:
            return value
        return int(cast("Tensor", self.fabric.all_reduce(torch.tensor(value, device=self.device), reduce_op="max")))

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

    def share_buffers(self, module: nn.Module) -> None:
        """Give every process the main one's buffers: statistics that each has taken of its own batches."""
        if self.world_size > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def barrier(self) -> None:
        self.fabric.barrier()


def _layout(devices: int | str) -> tuple[int, int]:
    """Return how many processes there are on each machine, and how many machines: what torchrun or srun say goes."""
    if devices != "auto" and (isinstance(devices, bool) or not isinstance(devices, int) or devices < 1):
        raise ValueError(f"trainer.devices must be a positive int or auto, got {devices!r}")
    environment = os.environ
    if "TORCHELASTIC_RUN_ID" in environment:
        starter, here, nodes = "torchrun", int(environment["LOCAL_WORLD_SIZE"]), int(environment["GROUP_WORLD_SIZE"])
    elif int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        nodes = int(environment.get("SLURM_NNODES", 1))
        starter, here = "srun", int(environment["SLURM_NTASKS"]) // nodes
    elif devices == "auto":
        return torch.cuda.device_count() or 1, 1  # more processes on a CPU are a choice to make
    else:
        return int(devices), 1
    if devices not in ("auto", here):
        raise ValueError(f"trainer.devices is {devices}, but {starter} started {here} processes on this machine")
    return here, nodes
