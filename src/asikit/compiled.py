"""The one place for numba and LLVM: how loops over arrays are compiled, and where their machine code is kept.

A loop's arguments are arrays, whole numbers, truth values, and named tuples of them; it returns numbers, or nothing. It
allocates nothing, so its machine code needs nothing of numba's: numba compiles the loop once, the object code is kept
on disk, and whoever runs it later loads it without importing numba, which would take longer than most replays.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Loop", "jit"]

_Given = ParamSpec("_Given")
_Returned = TypeVar("_Returned")

_SUFFIX: Final = ".loop"
_LAYOUT: Final = "asikit loop 1"
_FINE: Final = (0, -2)
"""What numba's functions return when they have returned a value, or nothing."""
_COUNTING: Final = ("NRT_incref", "NRT_decref")
"""What counts the references to an array that numba has allocated: there is none in a loop."""
_COUNTED: Final = r"(?ms)^define [^\n]* @{}\(.*?^}}"
_RESULTS: Final = 16
"""More than any loop returns."""
_OPTIMIZED: Final = 3
_DEFINITION: Final = re.compile(r"^define .*?^}|^@.*?$", re.MULTILINE | re.DOTALL)
_NAME: Final = re.compile(r'@("[^"]*"|[-\w.$]+)')
_PLAIN: Final = (int, bool, str, float, np.generic, type(None))
"""What a loop may use of its module, beside other loops and modules: what is a constant to the compiler."""


def jit(function: Callable[_Given, _Returned]) -> Loop[_Given, _Returned]:
    """Compile a function when it is first called with arguments of some types, or take its machine code from the disk.

    The code is kept beside the source, else in the user's cache folder; where neither can be written, it is compiled
    anew in each process. It is taken for the same source, constants, types, processor, Python and numba only.
    """
    return Loop(function)


class Loop(Generic[_Given, _Returned]):
    """A compiled function.

    :ivar compiled: How many times this process has compiled it.
    :ivar loaded: How many times this process has taken its code from the disk.
    """

    def __init__(self, function: Callable[_Given, _Returned]) -> None:
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.compiled = self.loaded = 0
        self._function = cast("FunctionType", function)
        self._ready: dict[tuple[object, ...], _Code] = {}
        self._lock = threading.Lock()

    def __call__(self, *given: _Given.args, **named: _Given.kwargs) -> _Returned:
        """Run it; the interpreter's other threads go on meanwhile.

        :raises TypeError: An argument is of a type that no loop takes.
        """
        if named:
            raise TypeError(f"{self._function.__qualname__}: a loop's arguments are given by position")
        form: list[object] = []
        words: list[int] = []
        for one in given:
            _take(one, form, words)
        code = self._ready.get(tuple(form)) or self._prepare(given, tuple(form))
        return cast("_Returned", code.run(words))

    def fingerprint(self) -> str:
        """Return the same for two loops only if numba would compile them to the same."""
        digest = hashlib.sha256()
        for part in _parts(self._function.__code__, self._function):
            digest.update(f"{len(part)}:{part}".encode())
        return digest.hexdigest()

    def source(self) -> FunctionType:
        """Return the function as numba takes it: the loops that it calls are numba's own, of the same functions."""
        numba, function = _numba(), self._function
        names = {
            name: numba.njit(value.source()) if isinstance(value, Loop) else value
            for name, value in function.__globals__.items()
            if name in set(_names(function.__code__))
        }
        return FunctionType(function.__code__, names | {"__name__": function.__module__}, function.__name__)

    def _prepare(self, given: tuple[object, ...], form: tuple[object, ...]) -> _Code:
        with self._lock:
            if form in self._ready:
                return self._ready[form]
            kept = _Kept.of(self._function, form, self.fingerprint())
            found = kept.load()
            if found is None:
                found = _compile(self.source(), given)
                kept.save(found)
                self.compiled += 1
            else:
                self.loaded += 1
            self._ready[form] = _Code(found)
            return self._ready[form]


def _take(given: Any, form: list[object], words: list[int]) -> None:  # noqa: ANN401  (whatever a caller gives)
    """Append what an argument is, and the words that are handed over for it."""
    if isinstance(given, np.ndarray):
        about = given.__array_interface__
        if about["strides"] is not None or not given.flags.aligned:
            raise TypeError("a loop takes arrays without gaps only (numpy.ascontiguousarray)")
        form.append((about["typestr"], len(about["shape"])))
        words.append(about["data"][0])
        words.extend(about["shape"])
    elif isinstance(given, bool | np.bool_):
        form.append("bool")
        words.append(int(given))
    elif isinstance(given, int | np.signedinteger):
        form.append("int")
        words.append(int(given))
    elif isinstance(given, tuple) and hasattr(given, "_fields"):
        form.append((type(given).__module__, type(given).__qualname__, *given._fields))
        for one in given:
            _take(one, form, words)
    else:
        raise TypeError(f"a loop takes arrays, whole numbers and named tuples of them, not {type(given).__name__}")


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _parts(code: CodeType, function: FunctionType) -> Iterator[str]:
    """Yield all that a function's machine code depends on. Where in its file it stands is not among it."""
    if function.__closure__:
        raise TypeError(f"{function.__qualname__}: a loop is a function of its module, and has nothing from around it")
    yield code.co_code.hex()
    yield repr(code.co_varnames)
    for constant in code.co_consts:
        yield from _parts(constant, function) if isinstance(constant, CodeType) else [repr(constant)]
    for name in code.co_names:
        yield name
        value = function.__globals__.get(name)
        if isinstance(value, Loop):
            yield value.fingerprint()
        elif isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(value, _PLAIN):
            yield f"{type(value)} {value!r}"
        else:
            raise TypeError(f"{function.__qualname__}: a loop cannot use {name}, which is no number and no loop")


# Compiling.


@dataclass(frozen=True, slots=True)
class _Object:
    """What is kept of a compiled loop.

    :ivar symbol: The name of its entry in the object code.
    :ivar returns: The kind of each number that it returns, ``b`` for a truth value and ``i`` for a number.
    :ivar single: It returns one number and not a tuple.
    """

    symbol: str
    returns: str
    single: bool
    code: bytes


def _numba() -> Any:  # noqa: ANN401  (what is used of it has no types)
    import numba  # noqa: PLC0415  (only who compiles pays for it)

    return numba


def _compile(function: FunctionType, given: tuple[object, ...]) -> _Object:
    numba = _numba()
    types = numba.types
    loop = numba.njit(function)
    parameters: list[Any] = []
    inner: list[Any] = []
    known: dict[str, Any] = {"loop": loop, "carray": numba.carray}
    calls = []
    for one in given:
        text, kind = _parameter(one, parameters, known)
        calls.append(text)
        inner.append(kind)
    loop.compile(tuple(inner))
    (overload,) = loop.overloads.values()
    returned = overload.signature.return_type
    many = tuple(returned) if isinstance(returned, types.BaseTuple) else ()
    items = many or (() if returned is types.none else (returned,))
    if len(items) > _RESULTS or not all(isinstance(item, types.Integer | types.Boolean) for item in items):
        raise TypeError(f"{function.__qualname__}: a loop returns whole numbers, not {returned}")
    names = [f"p{number}" for number in range(len(parameters))]
    lines = [f"def entry({', '.join([*names, 'out'])}):", f"    found = loop({', '.join(calls)})"]
    lines += [f"    out[{number}] = found{f'[{number}]' if many else ''}" for number in range(len(items))]
    exec("\n".join(lines), known)  # noqa: S102  (the text is made of numbers and names of our own)
    entry = numba.njit(known["entry"])
    signature = (*parameters, types.CPointer(types.int64))
    entry.compile(signature)
    symbol = entry.overloads[signature].fndesc.llvm_func_name
    returns = "".join("b" if isinstance(item, types.Boolean) else "i" for item in items)
    code = _object_code(entry.inspect_llvm(signature), symbol, function)
    return _Object(symbol, returns, not many, code)


def _parameter(given: Any, parameters: list[Any], known: dict[str, Any]) -> tuple[str, Any]:  # noqa: ANN401
    """Return the text that makes an argument of the entry's parameters, and numba's type of it; append those."""
    numba = _numba()
    types = numba.types
    first = f"p{len(parameters)}"
    if isinstance(given, np.ndarray):
        kind = numba.from_dtype(given.dtype)
        shape = [f"p{len(parameters) + 1 + axis}" for axis in range(given.ndim)]
        parameters += [types.CPointer(kind), *[types.intp] * given.ndim]
        return f"carray({first}, ({', '.join(shape)},))", types.Array(kind, given.ndim, "C")
    if isinstance(given, bool | np.bool_):
        parameters.append(types.int64)
        return f"({first} != 0)", types.boolean
    if not isinstance(given, tuple):
        parameters.append(types.int64)
        return first, types.int64
    made = [_parameter(one, parameters, known) for one in given]
    known[f"T{first}"] = type(given)
    kinds = [kind for _, kind in made]
    alike = len(set(kinds)) == 1
    tuple_type = (
        types.NamedUniTuple(kinds[0], len(kinds), type(given)) if alike else types.NamedTuple(kinds, type(given))
    )
    return f"T{first}({', '.join(text for text, _ in made)})", tuple_type


def _object_code(text: str, symbol: str, function: FunctionType) -> bytes:
    """Return the object code of a function and of what it calls; what else numba made around it is left out."""
    import llvmlite.binding as llvm  # noqa: PLC0415  (only who compiles or loads pays for it)

    for name in _COUNTING:
        text = re.sub(_COUNTED.format(name), f"define internal void @{name}(ptr %0) {{\n  ret void\n}}", text)
    module = llvm.parse_assembly(text)
    needed = {name for name in _needed(text, symbol) if not name.startswith("llvm.")}
    for one in (*module.functions, *module.global_variables):
        if one.is_declaration and one.name in needed and not hasattr(ctypes.pythonapi, one.name):
            raise TypeError(f"{function.__qualname__}: a loop allocates nothing, and this one needs {one.name}")
        if not one.is_declaration and one.name != symbol:
            one.linkage = "internal" if one.name in needed else "available_externally"  # the latter is not emitted
    return cast("bytes", _machine().emit_object(module))


def _needed(text: str, symbol: str) -> set[str]:
    """Return the names of all that a function of a module refers to, and of what that refers to, with its own."""
    refers = {}
    for one in _DEFINITION.finditer(text):
        own, *others = (name.strip('"') for name in _NAME.findall(one[0]))
        refers[own] = others
    found, todo = set[str](), [symbol]
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(refers.get(name, ()))
    return found


def _machine() -> Any:  # noqa: ANN401  (llvmlite has no types)
    import llvmlite.binding as llvm  # noqa: PLC0415

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features, opt=_OPTIMIZED, jit=True, codemodel="jitdefault"
    )


class _Code:
    """Object code that was loaded into this process."""

    def __init__(self, kept: _Object) -> None:
        import llvmlite.binding as llvm  # noqa: PLC0415

        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(kept.code))
        self._engine.finalize_object()
        self._address = self._engine.get_function_address(kept.symbol)
        self._returns = [bool if one == "b" else int for one in kept.returns]
        self._single = kept.single

    def run(self, words: list[int]) -> object:
        """Run it with the words of its arguments."""
        out = (ctypes.c_int64 * _RESULTS)()
        nothing, failed = ctypes.c_void_p(), ctypes.c_void_p()
        status = _entry(len(words))(self._address)(
            ctypes.addressof(nothing), ctypes.addressof(failed), *words, ctypes.addressof(out)
        )
        if status not in _FINE:
            raise ArithmeticError("a compiled loop did what has no result, a division by zero for example")
        found = tuple(kind(word) for kind, word in zip(self._returns, out, strict=False))
        return found if not self._single else found[0] if found else None


@cache
def _entry(words: int) -> Any:  # noqa: ANN401  (a type of ctypes')
    """Return the type of an entry: before its words it takes where to put what it returns, and what went wrong."""
    return ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * (words + 3))


# Keeping.


@dataclass(frozen=True, slots=True)
class _Kept:
    """The file of a loop's machine code for some types of arguments, on this kind of processor.

    :ivar names: Where it may be, the best first.
    :ivar fingerprint: Of the loop as it is now.
    """

    names: tuple[Path, ...]
    fingerprint: str

    @classmethod
    def of(cls, function: FunctionType, form: tuple[object, ...], fingerprint: str) -> _Kept:
        """Return the file of a loop."""
        about = hashlib.sha256(f"{form} {_builder()}".encode()).hexdigest()[:16]
        module = function.__module__.rpartition(".")[2]
        name = f"{module}.{function.__name__}-{about}.{sys.implementation.cache_tag}{_SUFFIX}"
        folders = [Path(function.__code__.co_filename).parent / "__pycache__"]
        with suppress(RuntimeError):  # no home
            base = os.environ.get("XDG_CACHE_HOME")
            folders.append((Path(base) if base else Path.home() / ".cache") / "asikit" / "compiled")
        return cls(tuple(folder / name for folder in folders), fingerprint)

    def load(self) -> _Object | None:
        """Return what is kept; None if nothing is, or not of the loop as it is now, or if it is damaged."""
        for name in self.names:
            with suppress(OSError, ValueError, KeyError, TypeError):
                head, _, code = name.read_bytes().partition(b"\n")
                said = json.loads(head)
                if (said["fingerprint"], said["sha256"]) == (self.fingerprint, hashlib.sha256(code).hexdigest()):
                    return _Object(said["symbol"], said["returns"], said["single"], code)
        return None

    def save(self, made: _Object) -> None:
        """Keep code where that is possible. Readers see the whole of it or nothing."""
        head = {
            "layout": _LAYOUT,
            "fingerprint": self.fingerprint,
            "sha256": hashlib.sha256(made.code).hexdigest(),
            "symbol": made.symbol,
            "returns": made.returns,
            "single": made.single,
        }
        for name in self.names:
            partial = name.with_name(f"{name.name}.{os.getpid()}.{threading.get_ident()}.partial")
            with suppress(OSError):
                try:
                    name.parent.mkdir(parents=True, exist_ok=True)
                    partial.write_bytes(json.dumps(head).encode() + b"\n" + made.code)
                    partial.replace(name)
                except OSError:
                    partial.unlink(missing_ok=True)
                    raise
                return


@cache
def _builder() -> str:
    """Return what compiles, and for which processor: the code of another is not taken."""
    import llvmlite.binding as llvm  # noqa: PLC0415

    found = find_spec("numba")  # importing it would take longer than all else
    version = b""
    if found is not None and found.origin is not None:
        with suppress(OSError):
            version = Path(found.origin).with_name("_version.py").read_bytes()
    features = llvm.get_host_cpu_features().flatten()
    return f"{_LAYOUT} {version!r} {llvm.llvm_version_info} {llvm.get_host_cpu_name()} {features}"
