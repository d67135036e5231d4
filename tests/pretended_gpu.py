"""A GPU that is not there, for tests on machines without one.

Inside `pretended_gpu()` a tensor on a CUDA device is a `GpuTensor`. It says `cuda:0`, computes on the CPU, and refuses
to meet a tensor of the CPU, as CUDA does. Launches of kernels and waits of the CPU for the GPU are counted by
operation. Not seen: operations that CUDA lacks, memory, time, and autocast, which passes a pretended tensor by.

torch's FakeTensorMode has no values, and cannot pretend CUDA without a driver.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)
# the CPU must know the result before it continues
_WAITS = {"_local_scalar_dense", "nonzero", "bincount", "equal", "masked_select", "unique", "_unique2", "is_nonzero"}
# no kernel runs
_FREE = {"detach", "alias", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
_FREE |= {"_reshape_alias", "_unsafe_view", "view_as_real", "view_as_complex", "is_same_size", "record_stream"}
# they take a tensor of the CPU beside one of the GPU
_MIXED = {"copy_", "_to_copy", "_fused_adam_", "_fused_adamw_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Counts:
    """What a block did on the GPU.

    Attributes:
        launches: kernels, by operation.
        waits: waits of the CPU, by operation.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def clear(self) -> None:
        self.launches.clear()
        self.waits.clear()


_counts = Counts()


class GpuTensor(Tensor):
    """A tensor of the pretended GPU around one of the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> "GpuTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=values.device,
            requires_grad=requires_grad,
        )
        made.values = values
        return made

    device = property(lambda _: GPU)
    is_cuda = property(lambda _: True)

    def __repr__(self, **_: Any) -> str:
        return f"GpuTensor({self.values})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.values.__reduce_ex__(protocol)  # in a checkpoint

    def tolist(self) -> Any:
        _counts.waits["tolist"] += 1
        return self.values.tolist()

    # with these Module.to replaces a parameter, not its data alone
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["values"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: Any) -> "GpuTensor":
        return GpuTensor(inner["values"])

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _values(x: Any) -> Any:
    return x.values if isinstance(x, GpuTensor) else x


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operation of the GPU and count it."""
    name = func.name().removeprefix("aten::").split(".")[0]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    elsewhere = [x for x in tensors if not isinstance(x, GpuTensor) and x.ndim]
    if elsewhere and name in _INDEXED:
        _counts.waits["index on the CPU"] += 1
    elif elsewhere and name not in _MIXED:
        raise RuntimeError(f"{func}: two devices, cuda:0 and cpu, shapes {[tuple(x.shape) for x in elsewhere]}")
    out = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    if name in _WAITS:
        _counts.waits[name] += 1
    if name == "copy_" and len({isinstance(x, GpuTensor) for x in tensors}) == 2:
        _counts.waits["copy between devices"] += 1
    if not func.is_view and name not in _FREE and name != "_local_scalar_dense":
        _counts.launches[name] += 1
    own = {id(_values(x)): x for x in tensors}  # an operation in place returns its argument
    out = tree_map(lambda x: own.get(id(x), GpuTensor(x)) if isinstance(x, Tensor) else x, out)
    if torch.Tag.inplace_view in func.tags:  # such as transpose_: the wrapper has a shape of its own
        with no_dispatch():
            func(*args, **kwargs)
    return out


class _InOperation(TorchDispatchMode):
    """Inside a function of GPU tensors, what torch creates on the way is on the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs))):
            return out
        return tree_map(lambda x: GpuTensor(x) if isinstance(x, Tensor) and x.ndim else x, out)


class _Functions(TorchFunctionMode):
    """Factories and moves that name a CUDA device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cuda", "cpu") and args and isinstance(args[0], Tensor):
            return _move(name, args[0], list(args[1:]), kwargs)
        if _is_gpu(kwargs.get("device")):
            kwargs["device"] = "cpu"
            out = func(*args, **kwargs)
            return out if isinstance(out, GpuTensor) else _upload(out, waits=False)
        if any(isinstance(leaf, GpuTensor) for leaf in tree_leaves((args, kwargs))):
            with _InOperation():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _is_gpu(device: Any) -> bool:
    if device is None or isinstance(device, int | torch.dtype | Tensor):
        return False
    return torch.device(device).type == "cuda"


def _upload(x: Tensor, *, waits: bool) -> Tensor:
    if waits:
        _counts.waits["to the GPU"] += 1
    return _Upload.apply(x) if x.requires_grad and x.grad_fn else GpuTensor(x.detach(), x.requires_grad)


def _move(name: str, x: Tensor, rest: list[Any], kwargs: dict[str, Any]) -> Tensor:
    """Do what `to`, `cuda` and `cpu` do, in whichever form they are called."""
    device = kwargs.pop("device", None)
    named = [value for value in rest if isinstance(value, torch.device | str)]
    other = kwargs.pop("other", next((value for value in rest if isinstance(value, Tensor)), None))
    flags = [value for value in rest if isinstance(value, bool)]  # non_blocking, copy
    dtypes = [value for value in rest if isinstance(value, torch.dtype)]
    if name in ("cpu", "cuda"):
        device = name
    elif named:
        device = named[0]
    elif other is not None:
        device, dtypes = other.device, [other.dtype]
    waits = not kwargs.pop("non_blocking", flags[0] if flags else False)
    changes = bool(dtypes or kwargs.get("dtype") or kwargs.get("memory_format"))
    on_gpu = _is_gpu(device) if device is not None else isinstance(x, GpuTensor)
    if not isinstance(x, GpuTensor):
        x = Tensor.to(x, *dtypes, **kwargs) if changes else x
        return _upload(x, waits=waits) if on_gpu else x
    with _InOperation():
        x = Tensor.to(x, *dtypes, **kwargs) if changes else x
    if on_gpu:
        return x
    _counts.waits["to the CPU"] += 1
    return _values(x.detach() if x.requires_grad else x)


class _Upload(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return GpuTensor(x)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return _values(grad)


class _Replay(torch.autograd.Function):
    """One pass of a captured module: a launch forward, a launch backward."""

    @staticmethod
    def forward(ctx: Any, plain: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.out = _as_one_launch("graph", lambda: plain(x.detach()))
        ctx.parameters = parameters
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = _as_one_launch("graph", lambda: torch.autograd.grad(ctx.out, ctx.parameters, grad))
        return None, None, *grads


def _as_one_launch(name: str, work: Any) -> Any:
    launches = Counter(_counts.launches)
    out = work()
    _counts.launches = launches + Counter({name: 1})
    return out


def _capture(module: nn.Module, sample: tuple[Tensor, ...]) -> nn.Module:
    """Stand in for `torch.cuda.make_graphed_callables`, which also passes the sample a few times."""
    plain = module.forward
    for _ in range(3):
        plain(*sample)

    def forward(x: Tensor) -> Tensor:
        if not module.training:
            return plain(x)
        return _Replay.apply(plain, x, *module.parameters())

    module.forward = forward  # type: ignore[method-assign]
    return module


class _Generator(torch.Generator):
    """A generator of the pretended GPU draws on the CPU."""

    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls, "cpu")


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Counts]:
    """Pretend inside the block that the machine has one GPU, `cuda:0`."""
    global _counts
    _counts = Counts()
    card = SimpleNamespace(uuid="pretended", name="pretended", major=9, minor=0, total_memory=2**36)
    instead: dict[str, Any] = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.get_device_properties": lambda *_: card,
        "torch.cuda.get_device_capability": lambda *_: (9, 0),
        "torch.cuda.get_device_name": lambda *_: card.name,
        "torch.cuda.mem_get_info": lambda *_: (2**36, 2**36),
        "torch.cuda.is_bf16_supported": lambda **_: True,
        "torch.cuda.get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "torch.cuda.get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "torch.Tensor.pin_memory": lambda x, *_: x,
        "torch.Generator": _Generator,
        "torch.cuda.make_graphed_callables": _capture,
    }
    for name in ("_lazy_init", "set_device", "manual_seed", "manual_seed_all", "empty_cache", "set_rng_state"):
        instead[f"torch.cuda.{name}"] = lambda *_, **__: None
    instead["torch.cuda.set_rng_state_all"] = lambda *_: None
    instead["torch._C._cuda_clearCublasWorkspaces"] = lambda: None
    instead["torch.optim.Optimizer._accelerator_graph_capture_health_check"] = lambda *_: None
    with contextlib.ExitStack() as stack:
        for what, replacement in instead.items():
            stack.enter_context(mock.patch(what, replacement))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # nothing is behind it
        stack.enter_context(_Functions())
        yield _counts
