"""Which picture files a data folder holds, in which split and of which class. Nothing is opened here."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .pictures import EXTENSIONS

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class SplitFiles:
    """The picture files of one split, and for each the index of its class."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class FolderListing:
    """The files of ``train``, ``test`` and, if there is one, ``val``."""

    splits: dict[str, SplitFiles]
    class_names: tuple[str, ...]


def list_folder(root: Path) -> FolderListing:
    """List a folder in ImageFolder form: ``train/``, ``test/`` and, if there is one, ``val/``, with class folders.

    Raises:
        InputError: something else lies there.
    """
    if not root.exists():
        raise InputError(
            f"The data {str(root)!r} do not exist. Expected: digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, "
            "file.py:function, or a folder with train/ and test/ that hold one folder per class."
        )
    if not root.is_dir():
        raise InputError(
            f"The data {root} are a file. Expected a folder with train/ and test/ (and, if you like, val/)."
        )
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()}
    for needed in ("train", "test"):
        if needed not in folders:
            raise InputError(
                f"{root} has no {needed}/ folder. Expected {root}/train/CLASS/IMAGE and {root}/test/CLASS/IMAGE; "
                "test images are used once, for the report."
            )
    class_names = _class_folders(folders["train"])
    splits = {}
    for name, folder in folders.items():
        found = _class_folders(folder)
        if found != class_names:
            odd = sorted(set(found) ^ set(class_names))
            raise InputError(
                f"{folder} and {folders['train']} differ in their class folders: {', '.join(map(repr, odd[:5]))}. "
                "Both need the same ones."
            )
        splits[name] = _by_class(folder, class_names)
    return FolderListing(splits, class_names)


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise InputError(f"{folder} holds no class folders. Expected {folder}/CLASS/IMAGE.")
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The class folder {name!r} in {folder} has a name that is not UTF-8. Rename it."
            ) from error
    return tuple(names)


def _by_class(folder: Path, class_names: tuple[str, ...]) -> SplitFiles:
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        members = sorted(path for path in (folder / class_name).rglob("*") if _is_picture(path))
        if not members:
            raise InputError(f"The class folder {folder / class_name} holds no image. Add images or remove the folder.")
        files += members
        labels += [label] * len(members)
    return SplitFiles(tuple(files), tuple(labels))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
