"""List the picture files of a data folder by split and class, without opening them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...common.errors import InputError
from .pictures import EXTENSIONS

SPLITS = ("train", "val", "test")
TEST_SHARE, FEWEST_PICTURES = 0.2, 5  # of a folder of pictures only


@dataclass(frozen=True)
class SplitFiles:
    """The picture files of one split with the class index of each; None if they are not in class folders."""

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None


@dataclass(frozen=True)
class FolderListing:
    """The files of ``train``, ``test`` and, if there is one, ``val``. ``class_names`` is empty if no split has labels."""

    splits: dict[str, SplitFiles]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def list_folder(root: Path, seed: int = 0) -> FolderListing:
    """List ``train/``, ``test/`` and, if there is one, ``val/``; or a folder of pictures only, which the seed splits.

    The folders in a split are its classes and hold pictures at any depth. Pictures directly in a split have no labels; a split
    may not hold both.

    Raises:
        InputError: the folder has another structure.
    """
    if not root.exists():
        raise InputError(
            f"The data {str(root)!r} do not exist. Expected digits, cifar10:DIR, cifar100:DIR, fashion-mnist:DIR, "
            "file.py:function, or a folder with train/ and test/ that hold one folder per class, or pictures without labels."
        )
    if not root.is_dir():
        raise InputError(f"The data {root} are a file. Expected a folder with train/, test/ and optionally val/.")
    folders = {name: root / name for name in SPLITS if (root / name).is_dir()}
    if not folders and (pictures := _loose_pictures(root, "train/ and test/, or pictures only")):
        return _split_by_seed(root, pictures, seed)
    for needed in ("train", "test"):
        if needed not in folders:
            raise InputError(
                f"{root} has no {needed}/ folder. Expected {root}/train/CLASS/IMAGE and {root}/test/CLASS/IMAGE (or, "
                f"without labels, {root}/{needed}/IMAGE). Test images are used once, for the report."
            )
    expected = "class folders only or, for images without labels, pictures only"
    loose = {name: _loose_pictures(folder, expected) for name, folder in folders.items()}
    labelled = [name for name in folders if not loose[name]]
    class_names = _class_folders(folders[labelled[0]]) if labelled else ()
    for name in labelled:
        odd = sorted(set(_class_folders(folders[name])) ^ set(class_names))
        if odd:
            raise InputError(
                f"{folders[name]} and {folders[labelled[0]]} differ in their class folders: "
                f"{', '.join(map(repr, odd[:5]))}. All splits need the same class "
                "folders; put pictures without labels directly into the split's folder."
            )
    splits = {
        name: SplitFiles(loose[name], None) if loose[name] else _by_class(folder, class_names)
        for name, folder in folders.items()
    }
    return FolderListing(splits, class_names)


def _loose_pictures(folder: Path, expected: str) -> tuple[Path, ...]:
    """The pictures directly in a folder, sorted; folders with pictures are not allowed next to them."""
    pictures = tuple(sorted(path for path in folder.iterdir() if _is_picture(path) and not path.is_dir()))
    if not pictures:
        return ()
    others = [name for name in _folders_in(folder) if any(map(_is_picture, (folder / name).rglob("*")))]
    if others:
        raise InputError(
            f"{folder} holds {_counted([path.name for path in pictures], 'picture')} beside "
            f"{_counted(others, 'folder')} of pictures. Expected {expected}. Move one or the other."
        )
    return pictures


def _split_by_seed(root: Path, pictures: Sequence[Path], seed: int) -> FolderListing:
    if len(pictures) < FEWEST_PICTURES:
        raise InputError(
            f"{root} holds {len(pictures)} pictures, too few to draw test and validation images from. Add pictures, or "
            "make train/ and test/ folders."
        )
    count = round(TEST_SHARE * len(pictures))
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    test, train = (tuple(pictures[index] for index in sorted(part)) for part in (order[:count], order[count:]))
    note = f"The folder holds pictures only: {count} of {len(pictures)} were drawn as test images (seed {seed})."
    return FolderListing({"train": SplitFiles(train, None), "test": SplitFiles(test, None)}, (), (note,))


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = _folders_in(folder)
    if not names:
        raise InputError(
            f"{folder} holds no class folders. Expected {folder}/CLASS/IMAGE, or {folder}/IMAGE for images without labels."
        )
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The class folder {name!r} in {folder} has a name that is not UTF-8. Rename it."
            ) from error
    return names


def _by_class(folder: Path, class_names: Sequence[str]) -> SplitFiles:
    files: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        members = sorted(path for path in (folder / class_name).rglob("*") if _is_picture(path))
        if not members:
            raise InputError(f"The class folder {folder / class_name} holds no image. Add images or remove the folder.")
        files += members
        labels += [label] * len(members)
    return SplitFiles(tuple(files), tuple(labels))


def _folders_in(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _counted(names: Sequence[str], word: str) -> str:
    """``2 pictures ('a.png', 'b.png')``, at most five of them named."""
    shown = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
    return f"{len(names)} {word}{'s' if len(names) > 1 else ''} ({shown})"
