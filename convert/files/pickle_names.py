"""What pickles refer to by name, and whether calling it would do more than make an object."""

import _compat_pickle
from dataclasses import dataclass

from convert.files.flax_scanner import printable

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
    functools.partial logging.getLogger operator.attrgetter operator.getitem operator.itemgetter
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
_CLASSES_OF_TORCH = ("torch.nn.", "torch.optim.", "torch.distributed.", "torch.utils.data.")


@dataclass(frozen=True)
class Name:
    """What a pickle refers to by its name: a class, a function."""

    module: str
    name: str

    @property
    def known(self) -> str:
        """As Python 3 calls it: the older protocols write the names of Python 2."""
        module, name = _compat_pickle.NAME_MAPPING.get((self.module, self.name), (None, self.name))
        module = module or _compat_pickle.IMPORT_MAPPING.get(self.module, self.module)
        return f"{_ALIASES.get(module, module)}.{name}"

    def __str__(self) -> str:
        return printable(self.known)

    @property
    def in_full(self) -> str:
        """ "os.system", as it is known, and "posix.system", as it stands in the file."""
        written = printable(f"{self.module}.{self.name}")
        return str(self) if str(self) == written else f"{self} ({written})"


def acts(what: Name, called: bool) -> bool:
    """Whether calling (or only making) it is more than making an object of some class."""
    if (
        what.known in _HARMLESS
        or what.known.startswith("builtins.")
        and what.name.endswith("Error")
    ):
        return False
    module = what.known.removesuffix(f".{what.name}")
    if module.partition(".")[0].lstrip("_") in _ACTING or module.partition(".")[0] in _ACTING:
        return True
    if module == "torch" or "." in what.name and module.startswith("torch"):
        return called
    is_class = what.name.rpartition(".")[2].lstrip("_")[:1].isupper()
    if module.startswith("torch.") and not module.startswith(_CLASSES_OF_TORCH):
        return called
    return called and not is_class
