"""Pickles, read without running anything that they name.

A pickle is a program for a stack machine, and two of its instructions call functions. This machine
has those two as well, but calls nothing: it knows by heart what a few functions make (containers,
tensors) and makes that itself; an object of any other class becomes an inert `Thing`. A pickle that
calls what no file of weights needs is `Refused` with the name of it. Python's own unpickler is not
used, not even restricted: it believes the sizes that a pickle states.

`torch_file` reads with this what `torch.load(weights_only=True)` reads, to the same tensors, and the
files that it refuses for harmless objects among their settings. It does not come first: a deflated
archive it unpacks, a thousand times as large as the file, and memory it takes as a pickle asks.
"""

import io
import pickletools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from convert.files.flax_scanner import printable
from convert.files.pickle_names import Name, acts

MAX_INSTRUCTIONS = 1_000_000  # Besnier & Chen's files, optimizer's state included, have some 40,000
MAX_COPIED = 2**21  # elements of containers and of arguments, or 64 characters or bytes each
MAX_NAME = 1000  # characters of a class or function with its module
_MARK = object()


class PickleProblem(ValueError):
    """What is wrong with a pickle, in one line."""


class Refused(PickleProblem):
    """The pickle calls what no file of weights needs; says what."""


@dataclass(eq=False)
class Thing:
    """An object that is not looked into, and would only come to life if its class were imported."""

    kind: Name
    arguments: tuple = ()
    state: Any = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)

    def __repr__(self) -> str:  # never of what is in it, which may be nested without end
        return f"an object of {self.kind}"


def _plain_list(items: Any = ()) -> list | tuple:
    # Sets too: members may not be hashable here, and hashing may be made slow on purpose.
    if not isinstance(items, list | tuple):
        raise TypeError
    return items


def _plain_dict(pairs: Any = ()) -> dict:
    return pairs if isinstance(pairs, dict) else {_key(k): v for k, v in pairs}


def _plain_bytes(data: Any = b"", encoding: Any = None) -> bytes:
    if isinstance(data, str) and encoding in ("latin-1", "latin1"):
        return data.encode("latin-1")
    if isinstance(data, bytes | bytearray | list | tuple):
        return bytes(data)
    size = f" of {data:,} bytes" if isinstance(data, int) and abs(data) < 2**64 else ""
    raise Refused(f"its pickle asks for a buffer{size}, which no file of weights does")


def _union(function: Any = None, *_: Any) -> Thing:
    """`int | None`, which is pickled as `functools.reduce(operator.or_, (int, NoneType))`."""
    if not isinstance(function, Name) or function.known != "operator.or_":
        raise Refused(f"its pickle tries to run functools.reduce of {function}")
    return Thing(function)


# What is made here in place of the function's result.
_BUILDERS: dict[str, Callable] = {
    "collections.OrderedDict": _plain_dict,
    "collections.Counter": _plain_dict,
    "collections.defaultdict": lambda factory=None, pairs=(): _plain_dict(pairs),
    "builtins.dict": _plain_dict,
    "builtins.list": _plain_list,
    "builtins.set": _plain_list,
    "builtins.frozenset": _plain_list,
    "builtins.tuple": _plain_list,
    "functools.reduce": _union,
    "_codecs.encode": _plain_bytes,
    "builtins.bytearray": _plain_bytes,
    "builtins.bytes": _plain_bytes,
}


@dataclass
class Machine:
    """Runs pickles of one file.

    Args:
      persistent: makes what a persistent id stands for; of a file without any, None.
      builders: by "module.function", makes what a call of that function would give.

    Attributes:
      things: how many objects of which class were left inert.
    """

    persistent: Callable[[Any], Any] | None = None
    builders: dict[str, Callable] = field(default_factory=dict)
    things: Counter = field(default_factory=Counter)

    def load(self, file: io.BytesIO) -> Any:
        """Reads the pickle at the file's position, and stops behind it.

        Raises:
          Refused: it calls something; names it.
          PickleProblem: it is damaged or no pickle.
        """
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > MAX_INSTRUCTIONS:
                    raise PickleProblem(
                        f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions"
                    )
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._run(opcode.name, argument)
        except PickleProblem:
            raise
        except ValueError as error:
            raise PickleProblem(f"its pickle is damaged: {printable(str(error)[:200])}") from None
        except (IndexError, KeyError, TypeError, OverflowError, AttributeError) as error:
            raise PickleProblem(f"its pickle is damaged: {type(error).__name__}") from None
        raise PickleProblem("its pickle has no end")

    def _run(self, name: str, argument: Any) -> None:
        if name in _PUSHES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _NOTHING:
            pass
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        else:
            raise PickleProblem(f"its pickle has the instruction {name}; no file of weights has")

    def _pop_mark(self) -> list:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def call(self, function: Any, arguments: tuple | list) -> Any:
        """What a call would give; an inert `Thing` if that cannot be told.

        Raises:
          Refused: it would do something that no file of weights needs.
        """
        if not isinstance(function, Name):
            raise Refused(f"its pickle tries to run {_result(function)}")
        known = function.known
        builder = self.builders.get(known) or _BUILDERS.get(known)
        if builder:
            return self._build_known(builder, arguments)
        if known.startswith("torch._utils._rebuild_"):  # of kinds that no weights here have
            return self._thing(function, arguments)
        if acts(function, called=True):
            raise Refused(f"its pickle tries to run {function.in_full}")
        if known == "copyreg._reconstructor":
            function = arguments[0]
        return self._thing(function, arguments)

    def _make(self, kind: Any, arguments: Any) -> Any:
        """What making an object of a class, without its `__init__`, would give."""
        if not isinstance(kind, Name):
            raise PickleProblem("its pickle makes an object of what is no class")
        known = kind.known
        if known in _BUILDERS:
            return self._build_known(_BUILDERS[known], arguments)
        if acts(kind, called=False):
            raise Refused(f"its pickle tries to make a {kind.in_full}")
        return self._thing(kind, arguments)

    def _build_known(self, builder: Callable, arguments: Any) -> Any:
        for part in arguments:
            if isinstance(part, list | tuple | dict):
                self._count(len(part))
            elif isinstance(part, str | bytes | bytearray):
                self._count(len(part) // 64)
        return builder(*arguments)

    def _count(self, copied: int) -> None:
        """Copies of copies of something large would fill the memory, or take for ever."""
        self.copied += copied
        if self.copied > MAX_COPIED:
            raise PickleProblem("its pickle copies more than any file of weights")

    def _arguments(self) -> tuple:
        """Those of a call, off the stack."""
        arguments = self.stack.pop()
        if not isinstance(arguments, tuple):  # a text would come apart into its characters
            raise TypeError
        self._count(len(arguments))
        return arguments

    def _thing(self, kind: Any, arguments: Any) -> Thing:
        if not isinstance(kind, Name):
            raise PickleProblem("its pickle makes an object of what is no class")
        self.things[str(kind)] += 1
        return Thing(kind, tuple(arguments))

    # The instructions that do more than push, in the order of pickletools.

    def _mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _append(self, items: list) -> None:
        target = self.stack[-1]
        (target.elements if isinstance(target, Thing) else target).extend(items)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        target = target.items if isinstance(target, Thing) else target
        if not isinstance(target, dict):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def _build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Thing):  # attributes of containers and tensors are not needed
            self.stack[-1].state = state

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(_name(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_name(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, function = self._arguments(), self.stack.pop()
        self.stack.append(self.call(function, arguments))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        arguments = self._pop_mark()
        self.stack.append(self.call(_name(module, name), arguments))

    def _obj(self, _: Any) -> None:
        function, *arguments = self._pop_mark()
        self.stack.append(self.call(function, arguments))

    def _newobj(self, _: Any) -> None:
        arguments, kind = self._arguments(), self.stack.pop()
        self.stack.append(self._make(kind, arguments))

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()  # keyword arguments
        self._newobj(None)

    def _persistent(self, identity: Any) -> None:
        if self.persistent is None:
            raise PickleProblem("its pickle refers to data outside of it, and there are none")
        self.stack.append(self.persistent(identity))

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._pop_mark()

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _collect(self, make: Callable[[list], Any]) -> None:
        items = self._pop_mark()
        self.stack.append(make(items))

    def _tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) != count:
            raise IndexError
        self.stack[-count:] = [items]


def _name(module: Any, name: Any) -> Name:
    if not isinstance(name, str) or not isinstance(module, str):
        raise TypeError
    if len(module) + len(name) > MAX_NAME:
        raise PickleProblem(f"its pickle has a name of {len(module) + len(name):,} characters")
    return Name(module, name)


def _key(key: Any) -> Any:
    """A key of a dictionary that is cheap to hash."""
    if isinstance(key, str | bytes | bool | float | Name | Thing | None):
        return key
    if isinstance(key, int) and abs(key) < 2**60:
        return key
    if isinstance(key, tuple) and len(key) <= 8 and not any(isinstance(k, tuple) for k in key):
        return tuple(_key(part) for part in key)
    raise TypeError


def _result(what: Any) -> str:
    """Names what is called although it is itself the result of a call."""
    if isinstance(what, Thing) and what.kind.name == "getattr" and len(what.arguments) == 2:
        owner, attribute = what.arguments
        owner = owner.kind if isinstance(owner, Thing) else owner
        if isinstance(owner, Name) and isinstance(attribute, str):
            return f"{owner}.{printable(attribute[:80])}"
    return f"the result of {what.kind}" if isinstance(what, Thing) else "what is no function"


_PUSHES = frozenset(
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 FLOAT BINFLOAT
    """.split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NOTHING = frozenset(("PROTO", "FRAME"))
_OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine._mark,
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "APPEND": lambda m, _: m._append([m.stack.pop()]),
    "APPENDS": lambda m, _: m._append(m._pop_mark()),
    "ADDITEMS": lambda m, _: m._append(m._pop_mark()),
    "LIST": lambda m, _: m._collect(list),
    "FROZENSET": lambda m, _: m._collect(list),
    "TUPLE": lambda m, _: m._collect(tuple),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "DICT": lambda m, _: m._collect(
        lambda items: _plain_dict(list(zip(items[::2], items[1::2], strict=True)))
    ),
    "SETITEM": lambda m, _: m._set_items([m.stack.pop(), m.stack.pop()][::-1]),
    "SETITEMS": lambda m, _: m._set_items(m._pop_mark()),
    "POP": Machine._pop,
    "POP_MARK": lambda m, _: m._pop_mark() and None,
    "DUP": Machine._dup,
    "GET": lambda m, index: m.stack.append(m.memo[index]),
    "BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memo[index]),
    "PUT": Machine._put,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": lambda m, _: m._put(len(m.memo)),
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "BUILD": Machine._build,
    "INST": Machine._inst,
    "OBJ": Machine._obj,
    "NEWOBJ": Machine._newobj,
    "NEWOBJ_EX": Machine._newobj_ex,
    "PERSID": Machine._persistent,
    "BINPERSID": lambda m, _: m._persistent(m.stack.pop()),
}
