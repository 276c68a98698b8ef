"""A pretended GPU: tensors that lie in the memory of the CPU and say that they are on a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, final

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

import decode.verbs.polish

CUDA = torch.device("cuda", 0)

WAITING = (
    "aten._local_scalar_dense",
    "aten._linalg_check_errors",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique",
    "aten._unique",
    "aten.bincount",
    "aten.equal",
    "aten.is_nonzero",
)
"""operators whose result the host waits for: its value or its size (torch.cuda.set_sync_debug_mode
names the same)"""
TOGETHER = ("aten.cat", "aten.stack", "aten._foreach")
"""operators that take no number of the CPU beside tensors of the GPU"""


@final
class PretendGPU(TorchFunctionMode):
    """Makes tensors where a GPU is asked for, refuses what a GPU refuses, and counts.

    Kernels run on the CPU, so it tells whether a program would run on a GPU and how often it would
    wait for one; it says nothing of speed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dispatches: Counter[str] = Counter()
        """operators, by the line of decode that called them"""
        self.waits: Counter[str] = Counter()
        """times that the host waits for the GPU, by line: for a value, a size, or the end of a
        copy"""

    def clear(self) -> None:
        self.dispatches.clear()
        self.waits.clear()

    def wait(self, why: str) -> None:
        self.waits[f"{_line()} {why}"] += 1

    def put(self, value: Any, *, blocking: bool) -> Any:
        """A tensor of the CPU on the GPU."""
        if not isinstance(value, Tensor) or isinstance(value, OnGPU):
            return value
        self.dispatches[_line()] += 1
        if blocking:
            self.wait("copy to the GPU")
        return OnGPU(value.detach(), self)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and not isinstance(args[0], OnGPU):
            device, blocking, rest, kwargs = _to_where(args[1:], kwargs)
            if device is not None and device.type == "cuda":
                value = func(args[0], *rest, **kwargs) if rest or kwargs else args[0]
                return self.put(value, blocking=blocking)
            return func(args[0], *([device] if device else []), *rest, **kwargs)
        every = tree_flatten((args, kwargs))[0]
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            _check_generator(kwargs.get("generator"), on_gpu=True)
            if func in (torch.as_tensor, torch.tensor):
                if isinstance(args[0], OnGPU):
                    return args[0]
                value = func(*args, **kwargs | {"device": "cpu"})
                return self.put(value, blocking=True)
            value = func(*tree_map(_held, args), **tree_map(_held, kwargs) | {"device": "cpu"})
            return tree_map(lambda v: self.put(v, blocking=False), value)
        if "generator" in kwargs:
            on_gpu = any(isinstance(value, OnGPU) for value in every)
            _check_generator(kwargs["generator"], on_gpu=on_gpu)
        return func(*args, **kwargs)


class OnGPU(Tensor):
    """A tensor that says it is on a GPU."""

    held: Tensor
    gpu: PretendGPU

    @staticmethod
    def __new__(cls, held: Tensor, gpu: PretendGPU) -> OnGPU:
        tensor: OnGPU = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device="cpu",
        )
        tensor.held, tensor.gpu = held, gpu
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.held})"

    def __deepcopy__(self, memo: dict[int, Any]) -> OnGPU:
        if id(self) not in memo:
            copied = OnGPU(self.held.detach().clone(), self.gpu)
            copied.requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        of = args[0] if args else None
        if func == Tensor.device.__get__:
            return CUDA
        if func == Tensor.is_cuda.__get__:
            return True
        if func in (Tensor.numpy, Tensor.__array__):
            raise TypeError(f"NumPy cannot read a tensor on the GPU: {_line()}")
        if func is Tensor.tolist:
            of.gpu.wait("tolist")
            return of.held.tolist()
        if func is Tensor.new_tensor:
            return of.gpu.put(of.held.new_tensor(*args[1:], **kwargs), blocking=True)
        if func is Tensor.cpu:
            of.gpu.wait("copy to the CPU")
            return of.held.detach().clone()
        if func is Tensor.to and isinstance(of, OnGPU):
            device, _, rest, kwargs = _to_where(args[1:], kwargs)
            if device is not None and device.type == "cpu":
                of.gpu.wait("copy to the CPU")
                return of.held.detach().clone().to(*rest, **kwargs)
            if not rest and not kwargs:
                return of
            args = (of, *rest)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = str(func)
        every = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        gpu = next(value for value in every if isinstance(value, OnGPU)).gpu
        gpu.dispatches[_line()] += 1
        _check_devices(name, args, every, gpu)
        if _waits(name, args, kwargs):
            gpu.wait(name)
        if str(kwargs.get("device")) == "meta":  # torch asks for a shape
            return func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_held, args), **tree_map(_held, kwargs))
        if name.startswith("aten._local_scalar_dense"):
            return result
        if func._schema.is_mutable and func._schema.returns and isinstance(result, Tensor):
            return args[0] if result is _held(args[0]) else OnGPU(result, gpu)
        return tree_map(lambda v: OnGPU(v, gpu) if isinstance(v, Tensor) else v, result)


PlainGenerator = torch.Generator


@final
class Generator(torch.Generator):
    """A source of randomness of the pretended GPU; a plain one where the CPU is asked for."""

    def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:  # type: ignore[misc]
        on_gpu = torch.device(device).type == "cuda"
        return super().__new__(cls) if on_gpu else PlainGenerator()

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA


def _caller() -> str:
    """The module that called the function that calls this."""
    return str(sys._getframe(2).f_globals["__name__"])


def _line() -> str:
    """The innermost line of decode that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/decode/" in name and "/tests/" not in name:
            return f"{name.split('/decode/')[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "tests"


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGPU) else value


def _to_where(
    args: Sequence[Any], kwargs: dict[str, Any]
) -> tuple[torch.device | None, bool, list[Any], dict[str, Any]]:
    """What `Tensor.to` is asked for: the device, whether to wait, and the other arguments."""
    kwargs = dict(kwargs)
    device, blocking = kwargs.pop("device", None), not kwargs.pop("non_blocking", False)
    rest: list[Any] = []
    for value in args:
        if isinstance(value, str | torch.device):
            device = value
        elif isinstance(value, Tensor):
            device = value.device
            rest.append(value.dtype)
        elif isinstance(value, bool):  # as nn.Module.to passes non_blocking
            blocking = not value
        elif value is not None:
            rest.append(value)
    return None if device is None else torch.device(device), blocking, rest, kwargs


def _check_generator(generator: torch.Generator | None, *, on_gpu: bool) -> None:
    if generator is not None and isinstance(generator, Generator) != on_gpu:
        where = "the GPU" if on_gpu else "the CPU"
        raise RuntimeError(f"a generator of another device draws on {where}: {_line()}")


def _check_devices(name: str, args: Any, every: Sequence[Tensor], gpu: PretendGPU) -> None:
    """Fail where tensors of both devices meet, but for numbers, indices and copies."""
    on_cpu = [value for value in every if not isinstance(value, OnGPU)]
    if forward_ad._current_level >= 0:
        # slopes of 0 that torch makes where the tensor really lies
        on_cpu = [value for value in on_cpu if bool(value.any())]
    arrays = [value for value in on_cpu if value.ndim or name.startswith(TOGETHER)]
    if not arrays:
        return
    if name.startswith("aten.copy_"):
        gpu.wait("copy between the devices")
        return
    indexing = name.startswith(("aten.index.", "aten.index_put", "aten._index_put"))
    if indexing and isinstance(args[0], OnGPU):
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if all(any(array is index for index in indices) for array in arrays):
            gpu.wait("copy of an index to the GPU")
            return
    raise RuntimeError(f"{name} of tensors on the CPU and on the GPU: {_line()}")


def _jvp(function: Any, primals: Any, tangents: Any) -> Any:
    """`torch.func.jvp` without its wrappers, which hide what they hold."""
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        value, slope = forward_ad.unpack_dual(function(*duals))
        return value, torch.zeros_like(value) if slope is None else slope


def _waits(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    if name.startswith("aten.repeat_interleave.Tensor"):
        return kwargs.get("output_size") is None
    if name.startswith(("aten.index.", "aten.index_put", "aten._index_put")):
        masked = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1])
        # a number is filled in by the mask itself
        return masked and not ("put" in name and args[2].numel() == 1)
    return name.startswith(WAITING)


@final
class _Pool(ThreadPoolExecutor):
    """Threads in which the pretended GPU is there, too."""

    gpu: PretendGPU

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        def inside() -> Any:
            with self.gpu:
                return work(*args, **kwargs)

        return super().submit(inside)


def _as_natives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch update pretended tensors in lists, as it does those of a GPU."""
    grouped = torch.utils._foreach_utils._group_tensors_by_device_and_dtype

    def as_said(lists: Any, with_indices: bool = False) -> Any:
        return {
            (tensors[0][0].device, dtype): (tensors, indices)
            for (_, dtype), (tensors, indices) in grouped(lists, with_indices).items()
        }

    for module in (torch.nn.utils.clip_grad, sys.modules[torch.optim.Optimizer.__module__]):
        monkeypatch.setattr(module, "_group_tensors_by_device_and_dtype", as_said)
    monkeypatch.setattr(torch.func, "jvp", _jvp)
    # a tensor of a subclass cannot be made in the inference mode
    for name in ("__enter__", "__exit__"):
        monkeypatch.setattr(torch.inference_mode, name, getattr(torch.no_grad, name))
    natives = torch.utils._foreach_utils._foreach_supported_types
    monkeypatch.setattr(torch.utils._foreach_utils, "_foreach_supported_types", [*natives, OnGPU])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGPU]:
    """A machine with a GPU, as far as decode sees."""
    pretended = PretendGPU()
    # torch itself would use what is not there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: _caller() == "decode.devices")
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: "a pretended GPU")
    described = SimpleNamespace(total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: described)
    # a parameter of the CPU cannot take over the tensor of a subclass
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    _as_natives(monkeypatch)
    monkeypatch.setattr(_Pool, "gpu", pretended, raising=False)
    monkeypatch.setattr(decode.verbs.polish, "ThreadPoolExecutor", _Pool)
    with pretended:
        yield pretended
