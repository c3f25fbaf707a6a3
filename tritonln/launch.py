"""From a kernel and its configuration to the driver."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.device import Device, active_device, interpreting, kernels_on, runs_triton
from tritonln.dtypes import bytes_of

# Contracted multiply-adds, said aloud because Triton's default is about to change.
FP_FUSION = True

Strides = tuple[tuple[int, bool, bool, bool], ...]
Form = tuple[Any, ...]  # bools, and tuples of them
Direct = Callable[[int, int, Sequence[Any]], None]  # called with programs, stream, and the compiled kernel's parameters


class Launch:
    """A kernel bound to its constants (the trailing constexpr parameters) and compile options.

    It is called with the number of programs and the kernel's other arguments: tensors, numbers, None, and tuples of
    operands, each a tensor, (tensor, *strides), or None where it is absent.

    One object serves arguments of one kind only: the same dtypes, the same ones absent, one device.
    The first launch on aligned tensors goes through Triton's own dispatch and keeps the compiled kernel, as
    does the first with row strides that Triton specializes otherwise; later ones go straight to that kernel's
    launcher with plain addresses.  Everything else takes the ordinary way each time, and on AMD so do tensors
    of 2 GB and more: Triton compiles those that are smaller with 32-bit offsets there.
    """

    __slots__ = ("addressable", "constants", "device", "direct", "kernel", "name", "of", "options")

    def __init__(
        self,
        kernel: Any,
        constants: tuple[Any, ...],
        device: Device,
        num_warps: int,
        num_ctas: int = 1,
        of: Any = None,
        name: str | None = None,
    ):
        self.device = device
        self.kernel = kernel
        self.constants = constants
        self.name = name or getattr(kernel, "__name__", "")  # that profiles show
        self.of = of  # the Tunable that it belongs to, which knows its operands by name
        self.options: dict[str, Any] = {"num_warps": num_warps, "num_ctas": num_ctas, "enable_fp_fusion": FP_FUSION}
        self.direct: dict[Strides, Direct] = {}
        self.addressable = 2**31 if device.backend == "hip" else None  # bytes of a tensor that the kept kernel reaches

    def __call__(self, programs: int, *arguments: Any) -> None:
        """Launches on the stream of the tensors' device."""
        calls = _recording.get()
        if calls is not None:
            calls.append(Recorded(self, programs, in_tuples(arguments)))
            return
        driver = active_driver()
        if driver is None:
            self.ordinary(programs, arguments)
            return
        current = driver.get_current_device()
        if self.device.index is not None and self.device.index != current:
            with torch.get_device_module(self.device.type).device(self.device.index):
                self(programs, *arguments)
            return
        parameters, strides = addressed(arguments)
        if self.addressable is not None and not self.reaches(arguments):
            strides = None
        direct = None if strides is None or hooked() else self.direct.get(strides)
        if direct is not None:
            direct(programs, driver.get_current_stream(current), parameters)
            return
        compiled = self.ordinary(programs, arguments)
        if strides is not None:
            direct = _direct(compiled, len(parameters), form_of(in_tuples(arguments)), self.constants)
            if direct is not None:
                self.direct[strides] = direct

    def repeated(self, programs: int, *arguments: Any) -> Callable[..., None]:
        """This launch for a loop that changes nothing but trailing scalars: they are what the result is called with."""
        if _recording.get() is not None:  # for a GPU that need not be there, and no driver either
            return functools.partial(self, programs, *arguments)
        driver = active_driver()
        current = driver.get_current_device() if driver is not None else None
        elsewhere = self.device.index is not None and self.device.index != current
        parameters, strides = addressed(arguments)
        if driver is None or elsewhere or strides is None or not self.reaches(arguments):
            return functools.partial(self, programs, *arguments)
        stream = driver.get_current_stream(current)

        def launch(*scalars: int | float) -> None:
            if strides not in self.direct or hooked():
                self(programs, *arguments, *scalars)
                return
            self.direct[strides](programs, stream, (*parameters, *scalars))

        return launch

    def reaches(self, arguments: Sequence[Any]) -> bool:
        """Whether the kernel that is kept can address all tensors."""
        return self.addressable is None or all(
            tensor is None or tensor.untyped_storage().nbytes() < self.addressable for tensor in tensors_in(arguments)
        )

    def ordinary(self, programs: int, arguments: Sequence[Any]) -> Any:
        return self.kernel[(programs,)](*in_tuples(arguments), *self.constants, **self.options)


def addressed(arguments: Sequence[Any]) -> tuple[list[Any], Strides | None]:
    """Arguments as the compiled kernel takes them: addresses for tensors, nothing for what is absent, no tuples.

    With them what Triton specializes a kernel for: of each stride where it stands, and whether it is 1, a multiple of
    16, or wider than 32 bits; None in place of the strides: a tensor is not aligned to 16 bytes.
    """
    found: list[Any] = []
    strides: Strides = ()
    bits = 0
    for argument in arguments:
        kind = type(argument)
        if kind is tuple:
            for operand in argument:
                if type(operand) is tuple:
                    address = operand[0].data_ptr()
                    bits |= address
                    found.append(address)
                    for stride in operand[1:]:
                        strides += ((len(found), stride == 1, stride % 16 == 0, stride >= 2**31),)
                        found.append(stride)
                elif operand is not None:
                    address = operand.data_ptr()
                    bits |= address
                    found.append(address)
        elif kind is int or kind is float:
            found.append(argument)
        elif argument is not None:
            address = argument.data_ptr()
            bits |= address
            found.append(address)
    return found, None if bits & 15 else strides


def in_tuples(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments with operands as kernels/operands.py has them, 8-bit floats as bytes."""
    return tuple(
        tuple(operand if isinstance(operand, tuple) else () if operand is None else (operand,) for operand in argument)
        if isinstance(argument, tuple)
        else bytes_of(argument)
        if isinstance(argument, Tensor)
        else argument
        for argument in arguments
    )


def form_of(arguments: Sequence[Any]) -> Form:
    """Where `in_tuples` has a parameter of the compiled kernel."""
    return tuple(form_of(a) if isinstance(a, tuple) else a is not None for a in arguments)


def in_form(form: Form, parameters: Iterator[Any]) -> tuple[Any, ...]:
    """Parameters as `in_tuples` has them, with None where there is none."""
    return tuple(
        [in_form(part, parameters) if type(part) is tuple else next(parameters) if part else None for part in form]
    )


def tensors_in(arguments: Sequence[Any]) -> Iterator[Any]:
    """The tensors of a launch in their order, those in tuples too; None and empty operands as None."""
    for argument in arguments:
        if isinstance(argument, tuple):
            yield from tensors_in(argument) if argument else (None,)
        elif argument is None or isinstance(argument, Tensor):
            yield argument


@functools.cache
def active_driver() -> Any:
    """Triton's driver, or None in the interpreter, which has none."""
    if interpreting():
        return None
    from triton.runtime import driver

    return driver.active


def forget_driver() -> None:
    """For who changes Triton's active driver in a running process: what was asked of the old one is asked again."""
    for asked in (active_driver, kernels_on, runs_triton, active_device):
        asked.cache_clear()


@functools.cache
def launch_hooks() -> tuple[Any, Any]:
    from triton import knobs

    return knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook


def hooked() -> Any:
    """Whether a profiler wants to hear of launches: then Triton's own dispatch tells it."""
    enter, leave = launch_hooks()
    return enter.calls or leave.calls


def _direct(compiled: Any, parameters: int, form: Form, constants: tuple[Any, ...]) -> Direct | None:
    """The launch of a CompiledKernel without Triton's dispatch, of so many parameters, which are arguments of a form;
    None on a Triton whose objects are not those known.
    """
    import triton

    try:
        known = triton.__version__.startswith("3.") and compiled.metadata.target.backend in ("cuda", "hip")
        hooked()
        run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata
    except AttributeError:
        return None
    if not known:
        return None
    if triton.__version__.startswith(("3.7.", "3.9.")) and _straight(run, parameters):
        return _in_c(run, function, metadata)

    def launch(programs: int, stream: int, parameters: Sequence[Any]) -> None:
        arguments = in_form(form, iter(parameters))
        run(programs, 1, 1, stream, function, metadata, None, None, None, *arguments, *constants)

    return launch


def _straight(run: Any, parameters: int) -> bool:
    """Whether a launcher of Triton's does nothing but call its C function, which takes so many parameters."""
    return (
        type(run).__name__ == "CudaLauncher"
        and len(run.kernel_signature) == parameters
        and not (run.global_scratch_size or run.profile_scratch_size or getattr(run, "gsan_enabled", False))
    )


def _in_c(run: Any, function: Any, metadata: Any) -> Direct:
    """That call, whose arguments need not be in tuples."""
    from triton.backends.nvidia.driver import annotate_arguments

    start, cooperative, dependent, signature = (
        run.launch,
        run.launch_cooperative_grid,
        run.launch_pdl,
        run.kernel_signature,
    )
    annotations = annotate_arguments(["i32"] * len(signature))  # each of them is a parameter

    def launch(programs: int, stream: int, parameters: Sequence[Any]) -> None:
        start(
            *(programs, 1, 1, stream, function, cooperative, dependent, metadata, None, None, None, None, None),
            *(annotations, signature, parameters),
        )

    return launch


class Recorded(NamedTuple):
    """A launch that was asked for: which, with how many programs, on which arguments."""

    launch: Launch
    programs: int
    args: tuple[Any, ...]


_recording: ContextVar[list[Recorded] | None] = ContextVar("recording", default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[Recorded]]:
    """Inside, launches of this thread are noted instead of carried out."""
    calls: list[Recorded] = []
    before = _recording.set(calls)
    try:
        yield calls
    finally:
        _recording.reset(before)
