"""Import functions from a user's Python file, with errors that name the file."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from .errors import InputError, describe
from .files import sha256_json


def split_function(spec: str, option: str) -> tuple[Path, str]:
    """Split ``path/to/file.py:function`` into its two parts.

    Raises:
        InputError: it has another form, or the file does not exist.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"{option} {spec}: expected path/to/file.py:function.")
    if not Path(file).is_file():
        raise InputError(f"{option} {spec}: the file {file} does not exist.")
    return Path(file), name


class _FromSource(SourceFileLoader):
    """Compiles the file at every import: cached bytecode also matches a file of the same size saved in the same second."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(path: Path, option: str) -> ModuleType:
    """Run a user's Python file as a module; it may import files beside it.

    Raises:
        InputError: running it failed.
    """
    module_name = f"secateur_user_{path.stem}_{sha256_json(str(path.resolve()))[:12]}"
    specification = importlib.util.spec_from_file_location(
        module_name, path, loader=_FromSource(module_name, str(path))
    )
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[module_name] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        sys.modules.pop(module_name, None)
        raise InputError(f"{option}: running {path} failed with {describe(error)}") from error
    finally:
        sys.path.remove(folder)
    return module


def import_function(spec: str, option: str) -> Callable[[], Any]:
    """The function that ``path/to/file.py:function`` names.

    Raises:
        InputError: the file or the function does not exist, or running the file failed.
    """
    path, name = split_function(spec, option)
    found = getattr(import_file(path, option), name, None)
    if found is None:
        raise InputError(f"{option} {spec}: {path} defines no {name!r}.")
    if not callable(found):
        raise InputError(f"{option} {spec}: {name!r} in {path} is not a function.")
    return found  # type: ignore[no-any-return]
