"""What Python calls compiled: Numba compiles it once, and later processes link what it made.

To load Numba and an entry of its own cache takes a process 0.7 s, to link the object file 0.05 s
(CPU time, Numba 0.68): so only what compiles loads Numba.

An entry is called as Numba's own code calls it (numba.core.callconv, CPUCallConv):
`status f(result *, error **, words ...)`, with the fields of tuples one after the other, and of an
array seven words if it has one axis (numba.core.datamodel.models, ArrayModel). Compiled functions
allocate nothing, so they do without Numba's reference counts, and they raise nothing.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from sim.code.sources import stamp_of
from sim.inputs.files import InputError
from sim.inputs.kept import folder_beside, write_whole

# Without wrappers a quarter less to compile; Python that called such a function would crash.
_OPTIONS: dict[str, Any] = {
    "_nrt": False,
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}
_SETTINGS = ".numba_config.yaml"
_RETURNS = {"none": None, "bool": ctypes.c_bool}
_RETURNED = (0, -2)  # statuses: a value, none


class Inner:
    """A function that compiled ones call; Numba hears of it when one of them is compiled.

    Python that calls it runs it as Python.
    """

    def __init__(self, function: Callable[..., Any], **options: Any) -> None:
        self.function, self.options = function, options

    def __call__(self, *arguments: Any) -> Any:
        """What the Python function returns."""
        return self.function(*arguments)

    @cached_property
    def dispatcher(self) -> Any:
        """Numba's own form of it, which lives as long as its type does."""
        return _numba().njit(**_OPTIONS, **self.options)(self.function)

    @property
    def _numba_type_(self) -> Any:
        return self.dispatcher._numba_type_


class Entry:
    """A function that Python calls with whole numbers, arrays and tuples of them.

    What it is compiled to lies beside its source, or in the user's cache where that cannot be
    written to. Where neither can, as in a locked container, each process compiles it anew. Other
    threads run beside it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._linked: dict[tuple[Any, ...], _Linked] = {}  # by the kinds of its arguments
        self._lock = Lock()

    def __call__(self, *arguments: Any) -> Any:
        """What the compiled function returns."""
        leaves = list(_leaves(arguments))
        kinds = tuple(_kind(leaf) for leaf in leaves)
        words = [word for leaf in leaves for word in _words(leaf)]
        linked = self._linked.get(kinds)
        if linked is None:
            with self._lock:
                linked = self._linked.get(kinds)
                if linked is None:
                    linked = _Linked(self._code_of(kinds, arguments), len(words))
                    self._linked[kinds] = linked
        return linked(words)

    @property
    def folder(self) -> Path | None:
        """Where what it is compiled to lies, or will; None where no folder can be written to."""
        return folder_beside(Path(self.function.__code__.co_filename))

    @property
    def is_kept(self) -> bool:
        """Whether it lies there, of whatever arguments."""
        return self.folder is not None and any(self.folder.glob(f"{self._name}-*.{self._stamp}.o"))

    @property
    def _name(self) -> str:
        return f"{self.function.__module__.rpartition('.')[2]}.{self.function.__name__}"

    @cached_property
    def _stamp(self) -> str:
        on = (stamp_of(self.function.__module__), version("numba"), np.__version__)
        return sha256(repr(on).encode()).hexdigest()[:16]

    def _code_of(self, kinds: tuple[Any, ...], arguments: tuple[Any, ...]) -> "_Code":
        kind = sha256(repr((kinds, _cpu())).encode()).hexdigest()[:16]
        file = self.folder and self.folder / f"{self._name}-{kind}.{self._stamp}.o"
        code = _Code.read(file) if file else None
        if code is None:
            code = self._compiled(arguments)
            if file:
                for old in file.parent.glob(f"{self._name}-{kind}.*.o"):
                    old.unlink(missing_ok=True)
                write_whole(file, code.packed())
        return code

    def _compiled(self, arguments: tuple[Any, ...]) -> "_Code":
        numba = _numba()
        typeof: Callable[[Any], Any] = numba.typeof
        types = tuple(typeof(argument) for argument in arguments)
        dispatcher = numba.njit(**_OPTIONS)(self.function)
        dispatcher.compile(types)
        made = dispatcher.overloads[types]
        _, _, (code, _) = made.library.serialize_using_object_code()
        return _Code(made.fndesc.llvm_func_name, str(made.signature.return_type), code)


def _numba() -> Any:
    """Numba, where it compiles as it does by itself; raises InputError.

    It would take its settings from a file of the current folder too.
    """
    if os.path.exists(_SETTINGS):
        raise InputError(
            f"{_SETTINGS}: Numba would compile the engine by this file of the current folder: "
            "start in another"
        )
    import numba

    settings: Any = numba.config
    if settings.DISABLE_JIT:
        raise InputError("NUMBA_DISABLE_JIT is set: the engine would not be compiled")
    return numba


@dataclass(frozen=True)
class _Code:
    """An object file, the symbol of its function, and what that returns."""

    symbol: str
    returns: str
    code: bytes

    def packed(self) -> bytes:
        checksum = sha256(self.code).hexdigest()
        return f"{self.symbol} {self.returns} {checksum}\n".encode() + self.code

    @classmethod
    def read(cls, file: Path) -> "_Code | None":
        """None where there is no such file, or it is damaged."""
        try:
            head, _, code = file.read_bytes().partition(b"\n")
            symbol, returns, checksum = head.decode().split()
        except (OSError, ValueError):
            return None
        return cls(symbol, returns, code) if sha256(code).hexdigest() == checksum else None


class _Linked:
    """Machine code in this process, to be called with so many words."""

    def __init__(self, code: _Code, words: int) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
        # It lives as long as the code does.
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code.code))
        self.engine.finalize_object()
        self.returns = _RETURNS[code.returns]
        pointers, rest = [ctypes.c_void_p] * 2, [ctypes.c_uint64] * words
        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *pointers, *rest)  # which lets go of the GIL
        self.function = prototype(self.engine.get_function_address(code.symbol))

    def __call__(self, words: list[int]) -> Any:
        result, error = ctypes.c_uint64(), ctypes.c_void_p()
        status = self.function(ctypes.byref(result), ctypes.byref(error), *words)
        assert status in _RETURNED
        return self.returns and self.returns.from_buffer(result).value


@cache
def _cpu() -> tuple[str, str]:
    """The processor that is compiled for, and what it can do."""
    import llvmlite.binding as llvm

    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _leaves(argument: Any) -> Iterator[Any]:
    if isinstance(argument, tuple):
        for field in argument:
            yield from _leaves(field)
    else:
        yield argument


def _kind(leaf: Any) -> Any:
    """What machine code depends on: an array's type and layout, or a number's type."""
    if isinstance(leaf, np.ndarray):
        flags = leaf.flags
        return leaf.dtype, leaf.ndim, flags.c_contiguous, flags.writeable, flags.aligned
    assert isinstance(leaf, int | np.int64 | np.uint64)
    return type(leaf)


def _words(leaf: Any) -> tuple[int, ...]:
    """A number, or an array: two owners, items, their size, where they lie, shape, strides."""
    if not isinstance(leaf, np.ndarray):
        return (int(leaf),)
    return (0, 0, leaf.size, leaf.itemsize, leaf.ctypes.data, *leaf.shape, *leaf.strides)


entry = Entry
