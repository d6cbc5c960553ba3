"""Which images there are in a folder with one folder for each class."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np

SUFFIXES = (b".jpeg", b".jpg", b".png")


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """The images of one split. A million of them are an array, not a million objects.

    Attributes:
      folder: what `names` are relative to.
      names: bytes of shape (num_examples,), "<class>/<file>", by class and then file.
      labels: int32 of shape (num_examples,), positions in `classes`.
      classes: names of the class folders, sorted.
    """

    folder: str
    names: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Returns the path of one image."""
        return os.path.join(self.folder, os.fsdecode(bytes(self.names[index])))

    def select(self, positions: np.ndarray) -> "Listing":
        """Returns those images alone, under the same labels."""
        return dataclasses.replace(
            self, names=self.names[positions], labels=self.labels[positions]
        )


def scan(
    folder: str | os.PathLike[str], classes: Sequence[str] | None = None
) -> Listing:
    """Lists `<folder>/<class>/<image>`, in the order of names.

    Args:
      folder: the folder of one split, such as `<root>/train`.
      classes: those of the training set, when this is another split, so that labels
        mean the same; None: the folders found.

    Raises:
      FileNotFoundError: the folder is missing, or has no class folders, or one of them
        holds no image.
      ValueError: the class folders are not `classes`.
    """
    folder = os.fspath(folder)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            f"no folder {folder}: images are expected as {folder}/<class>/*.JPEG"
        )
    with os.scandir(folder) as entries:
        found = sorted(
            entry.name
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        )
    if not found:
        raise FileNotFoundError(
            f"{folder} has no class folders: images are expected as "
            f"{folder}/<class>/*.JPEG"
        )
    if classes is not None and list(classes) != found:
        raise ValueError(
            f"the classes of {folder} are not those of the training set: missing "
            f"{_some(set(classes) - set(found))}, unexpected "
            f"{_some(set(found) - set(classes))}"
        )
    names: list[bytes] = []
    labels: list[np.ndarray] = []
    for label, name in enumerate(found):
        files = _image_files(os.fsencode(os.path.join(folder, name)))
        if not files:
            raise FileNotFoundError(
                f"the class folder {os.path.join(folder, name)} holds no image "
                "(.JPEG, .jpg, .jpeg or .png)"
            )
        prefix = os.fsencode(name) + b"/"
        names += [prefix + file for file in files]
        labels.append(np.full(len(files), label, np.int32))
    return Listing(folder, np.array(names), np.concatenate(labels), tuple(found))


def _image_files(folder: bytes) -> list[bytes]:
    with os.scandir(folder) as entries:
        return sorted(
            entry.name for entry in entries if entry.name.lower().endswith(SUFFIXES)
        )


def _some(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:3] + ["..."] * (len(shown) > 3)) or "none"
