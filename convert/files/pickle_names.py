"""What pickles name: reading the names, telling those that act, and inert stand-ins for all of them."""

import _compat_pickle
import pickletools
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from maskgit_pt.files import printable

MAX_INSTRUCTIONS = 1_000_000  # Besnier & Chen's files, optimizer's state included: 40,000
MAX_NAME = 1000  # characters of a class with its module
_ALIASES = {"posix": "os", "nt": "os", "_operator": "operator", "_functools": "functools"}

# Modules that run programs or code, open files or connections, or reach for other functions. The
# list need not be complete, as nothing is ever called: it decides what is reported.
_ACTING = frozenset(
    """
    _io _operator _pickle _posixsubprocess _sitebuiltins _socket _thread _winapi aiohttp antigravity asyncio
    atexit bdb builtins cProfile code codeop commands concurrent ctypes cffi distutils doctest
    dill cloudpickle ensurepip faulthandler fileinput ftplib gc glob httpx http idlelib imaplib
    imp importlib inspect io jinja2 joblib linecache logging marshal mmap msilib multiprocessing nntplib
    ntpath numexpr operator os pdb pickle pickletools pip pkgutil poplib popen2 posixpath
    profile pty pydoc requests resource runpy setuptools shelve shutil signal site smtplib socket
    socketserver sqlite3 ssl subprocess sys sysconfig tarfile telnetlib tempfile test threading timeit
    tkinter trace tracemalloc turtle types unittest urllib urllib2 urllib3 venv webbrowser winreg
    wsgiref xmlrpc zipapp zipfile zipimport zipimporter
    """.split()
)
# Functions that stand in state dicts and settings; what they make is inert here.
_HARMLESS = frozenset(
    """
    builtins.complex builtins.getattr builtins.object builtins.range builtins.slice
    builtins.type
    collections.deque copyreg.__newobj__ copyreg.__newobj_ex__ copyreg._reconstructor
    datetime.date datetime.datetime datetime.time datetime.timedelta datetime.timezone
    functools.partial functools.reduce logging.getLogger operator.attrgetter operator.getitem
    operator.itemgetter
    re._compile types.GenericAlias
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.dtype numpy.float64 numpy.float32
    numpy.core.numeric._frombuffer numpy._core.numeric._frombuffer
    numpy.random._pickle.__bit_generator_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__randomstate_ctor numpy.random.__RandomState_ctor
    numpy.random.bit_generator.__pyx_unpickle_SeedSequence numpy.ma.core._mareconstruct
    torch.device torch.Size torch.Generator torch.serialization._get_layout types.SimpleNamespace
    """.split()
)


# Functions that torch.load knows, and dtypes.
_KNOWN_TO_TORCH = re.compile(
    r"torch\.(_utils\._rebuild_|_tensor\._rebuild_|(b?float|u?int|complex)\d+$|bool$)"
)


class Refused(ValueError):
    """A pickle calls what no file of weights needs; says what."""


@dataclass(frozen=True)
class Name:
    """What a pickle refers to by its name: a class, a function."""

    module: str
    name: str

    @property
    def in_python_3(self) -> tuple[str, str]:
        """PyTorch's files write the names of Python 2."""
        name = _compat_pickle.NAME_MAPPING.get((self.module, self.name))
        return name or (_compat_pickle.IMPORT_MAPPING.get(self.module, self.module), self.name)

    @property
    def known(self) -> str:
        """As one calls it: "os.system"."""
        module, name = self.in_python_3
        return f"{_ALIASES.get(module, module)}.{name}"

    def __str__(self) -> str:
        return printable(self.known)

    @property
    def in_full(self) -> str:
        """ "os.system", as it is known, and "posix.system", as it stands in the file."""
        written = printable(f"{self.module}.{self.name}")
        return str(self) if str(self) == written else f"{self} ({written})"


def acts(what: Name) -> bool:
    """Whether calling it is more than making an object of some class."""
    if (
        what.known in _HARMLESS
        or what.known.startswith("builtins.")
        and what.name.endswith("Error")
    ):
        return False
    root = what.known.partition(".")[0]
    if root in _ACTING or root.lstrip("_") in _ACTING:
        return True
    if makes_numbers(what):
        return True
    last = what.name.rpartition(".")[2].lstrip("_")
    return not last[:1].isupper() and not _KNOWN_TO_TORCH.match(what.known)


def makes_numbers(what: Name) -> bool:
    """Whether it is `torch.FloatTensor` or the like, which `torch.load` calls: memory of any size."""
    return re.fullmatch(r"torch\.(\w+\.)*\w+Tensor", what.known) is not None


def names_in(data: BinaryIO, pickles: int) -> Iterator[Name]:
    """The classes and functions that consecutive pickles refer to.

    Raises:
      ValueError: damaged, or too long; one line.
    """
    count = 0
    for _ in range(pickles):
        texts: list[str] = []  # the last ones pushed, for STACK_GLOBAL
        memo: dict[int, str] = {}
        last: Any = None
        for opcode, argument, _ in _instructions(data):
            count += 1
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
            name = opcode.name
            if name in ("GLOBAL", "INST"):
                yield _checked_name(*argument.split(" ", 1))
            elif name == "STACK_GLOBAL" and len(texts) > 1:
                yield _checked_name(*texts[-2:])
            elif name == "MEMOIZE":
                memo[len(memo)] = last
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = last
            else:
                last = memo.get(argument) if name.endswith("GET") else argument
                if isinstance(last, str):
                    texts = [*texts[-1:], last]


def _instructions(data: BinaryIO) -> Iterator[tuple]:
    """`pickletools.genops`, whose errors are one kind here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in texts
        try:
            yield from pickletools.genops(data)
        except (ValueError, OverflowError, UnicodeError, SyntaxError, MemoryError) as error:
            text = printable(str(error)[:200])
            raise ValueError(f"its pickle is damaged: {text}") from None


def _checked_name(module: str, name: str) -> Name:
    if len(module) + len(name) > MAX_NAME:
        raise ValueError(f"its pickle has a name of {len(module) + len(name):,} characters")
    return Name(module, name)


class _LikeDict(type):
    """Lets `torch.load` put items into a `Thing`: it asks whether the class equals `dict`."""

    def __eq__(cls, other: object) -> bool:
        return other is dict or cls is other

    __hash__ = type.__hash__


class Thing(dict, metaclass=_LikeDict):
    """An object of a class that is not looked into; its items are kept, its attributes are not."""

    kind: Name
    made: Counter
    refused = False
    arguments: tuple = ()

    def __new__(cls, *arguments: Any, **_: Any) -> "Thing":
        if cls.refused:
            raise Refused(f"its pickle tries to run {cls.kind.in_full}")
        cls.made[str(cls.kind)] += 1
        made = super().__new__(cls)
        made.arguments = arguments[:2]
        return made

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __repr__(self) -> str:
        """What it would be called as, if it is called although it is itself the result of a call."""
        if self.kind.name == "getattr" and len(self.arguments) == 2:
            owner, attribute = self.arguments
            owner = owner if isinstance(owner, type) else type(owner)
            if issubclass(owner, Thing) and isinstance(attribute, str):
                return f"{owner.kind}.{printable(attribute[:80])}"
        return f"the result of {self.kind}"

    __hash__ = object.__hash__
    __eq__ = object.__eq__


def _plain_dict(factory: Any = None, pairs: Any = ()) -> dict:
    return dict(pairs)


def _plain_list(items: Any = (), *_: Any) -> list:
    return list(items) if isinstance(items, list | tuple | set) else []


def _plain_bytes(data: Any = b"", *_: Any) -> bytes:
    if isinstance(data, int):
        size = f" of {data:,} bytes" if abs(data) < 2**64 else ""
        raise Refused(f"its pickle asks for a buffer{size}, which no file of weights does")
    return b""


# Containers, which must take what is put into them.
_PLAIN = {
    "collections.defaultdict": _plain_dict,
    "collections.deque": _plain_list,
    "builtins.dict": lambda pairs=(): dict(pairs),
    "builtins.list": _plain_list,
    "builtins.tuple": _plain_list,
    "builtins.frozenset": _plain_list,
    "builtins.bytes": _plain_bytes,
}


def stand_ins(names: list[Name], made: Counter) -> list[tuple[Any, str]]:
    """What `torch.serialization.safe_globals` takes, for all names; `made` counts the objects.

    Classes that `torch.load` knows it makes itself.
    """
    result = []
    for name in names:
        if name.known in _PLAIN:
            made_by = _PLAIN[name.known]
        else:
            attributes = {"kind": name, "made": made, "refused": acts(name)}
            made_by = _LikeDict("Thing", (Thing,), attributes)
        # torch.load knows fewer of Python 2's names than Python does.
        result += [(made_by, ".".join(name.in_python_3)), (made_by, f"{name.module}.{name.name}")]
    return result
