"""The files below a folder: every real folder and file once, and what was left out.

What file servers, archives and operating systems put beside images is left out. Symbolic links are
followed, but a link never makes one file count twice, and a loop of links ends.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from castling.data.formats import is_image
from castling.utils.text import few, printable

#: Folders, in lower case, that systems and programs make: thumbnails, recycle bins, rescued files.
_FOREIGN_FOLDERS = frozenset(
    (
        *("@eadir", "@recently-snapshot", "@recycle", "#recycle", "#snapshot", "~snapshot"),
        *("$recycle.bin", "system volume information", "lost+found", "__macosx"),
    )
)


@dataclass
class Listing:
    """What lies below a folder or in an archive.

    Attributes:
        files: sorted names of all files, relative, joined by ``/``.
        folders: the same of all folders.
        links: of the files that were reached through a symbolic link, where they really lie: a
            name of ``files`` where that is one, an absolute path otherwise.
        left_out: why something was left out, with how many times by name.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)

    def leave_out(self, why: str, name: str) -> None:
        """Count something that is left out."""
        self.left_out.setdefault(why, Counter())[name] += 1

    @property
    def notes(self) -> list[str]:
        """What was left out, a line for each reason."""
        return [
            f"left out {why}: "
            + few(
                name if count == 1 else f"{name} ({count} times)" for name, count in found.items()
            )
            for why, found in self.left_out.items()
        ]

    def without_copies(self, used: Iterable[str]) -> tuple[set[str], list[str]]:
        """Of the files in use, those that count.

        A link to another file in use does not count, nor does the second of two links to one file.

        Args:
            used: names of ``files``.

        Returns:
            The links that do not count, and a note about them where there are any.
        """
        used = list(used)
        seen = {name for name in used if name not in self.links}
        copies: list[str] = []
        for name in used:
            if name in self.links:
                if self.links[name] in seen:
                    copies.append(name)
                seen.add(self.links[name])
        notes = [f"left out links to images that are read already: {few(copies)}"] if copies else []
        return set(copies), notes


def is_foreign(name: str, folder: bool) -> bool:
    """Whether a name is hidden, or one that a system or program gives to files of its own."""
    return name.startswith(".") or (folder and name.lower() in _FOREIGN_FOLDERS)


def note_foreign(listing: Listing, name: str, folder: bool) -> None:
    """Count a foreign folder or image; nobody misses other hidden files, such as ``.DS_Store``."""
    if folder:
        listing.leave_out("hidden folders and those of systems and file servers", printable(name))
    elif is_image(name):
        kind = "._*" if name.startswith("._") else printable(name)  # ._*: of macOS, one per file
        listing.leave_out("hidden images", kind)


def list_folder(root: Path) -> Listing:
    """Everything below a folder.

    Raises:
        PermissionError: a folder may not be read.
    """
    listing = Listing()
    real_root = os.path.realpath(root)
    names = {real_root: ""}  # of every real folder that was listed
    inside: dict[str, list[str]] = {"": []}  # the files directly in each, by name
    links: list[tuple[str, str]] = []  # to folders: name, and where it points
    _walk(real_root, "", listing, names, inside, links)
    # Real folders come first, so that a folder is known by its own name where it has one.
    while links:
        links.sort()
        name, target = links.pop(0)
        here = os.path.realpath(os.path.join(root, os.path.dirname(name)))
        known = names.get(target)
        above = known is not None and f"{name}/".startswith(f"{known}/" if known else "")
        if above or target == here or here.startswith(target.rstrip(os.sep) + os.sep):
            listing.leave_out("links to a folder that holds them", printable(name))
        elif known is not None:
            _list_again(listing, known, name, inside)
        else:
            listing.folders.append(name)
            names[target] = name
            inside[name] = []
            _walk(target, name, listing, names, inside, links)
    listing.files.sort()
    listing.folders.sort()
    real = {os.path.join(path, ""): name for path, name in names.items()}
    listing.links = {name: _own_name(path, real) for name, path in listing.links.items()}
    return listing


def _walk(
    top: str,
    name: str,
    listing: Listing,
    names: dict[str, str],
    inside: dict[str, list[str]],
    links: list[tuple[str, str]],
) -> None:
    """List a real folder and the real folders below it; collect the links to folders."""
    waiting = [(top, name)]
    while waiting:
        path, prefix = waiting.pop()
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            raise type(error)(
                error.errno, f"cannot read the folder: {error.strerror}", printable(path)
            ) from error
        for entry in entries:
            full = f"{prefix}/{entry.name}" if prefix else entry.name
            linked = entry.is_symlink()
            mode = _mode(entry.path) if linked else 0
            folder = stat.S_ISDIR(mode) if linked else entry.is_dir(follow_symlinks=False)
            if is_foreign(entry.name, folder):
                note_foreign(listing, entry.name, folder)
            elif folder and linked:
                links.append((full, os.path.realpath(entry.path)))
            elif folder:
                if entry.path not in names:  # otherwise a link led here before
                    names[entry.path] = full
                    inside[full] = []
                    listing.folders.append(full)
                    waiting.append((entry.path, full))
            elif stat.S_ISREG(mode) if linked else entry.is_file(follow_symlinks=False):
                listing.files.append(full)
                inside[prefix].append(full)
                if linked:
                    listing.links[full] = os.path.realpath(entry.path)
            elif linked and not mode:
                listing.leave_out("links to nothing", printable(full))
            else:
                listing.leave_out("pipes, sockets and devices", printable(full))


def _list_again(listing: Listing, original: str, name: str, inside: dict[str, list[str]]) -> None:
    """List the files below an already listed folder once more, under a link to it.

    Whether they count is decided by which files are used; see :meth:`Listing.without_copies`.
    """
    prefix = f"{original}/" if original else ""
    for folder, files in inside.items():
        if folder != original and not folder.startswith(prefix):
            continue
        again = name if folder == original else f"{name}/{folder.removeprefix(prefix)}"
        listing.folders.append(again)
        for file in files:
            listing.files.append(f"{again}/{file.rpartition('/')[2]}")
            listing.links[listing.files[-1]] = listing.links.get(file, file)


def _own_name(path: str, real: dict[str, str]) -> str:
    """The name of a file in the listing, where its folder was listed; otherwise its path."""
    if not os.path.isabs(path):  # from a folder that was listed twice
        return path
    folder, _, file = path.rpartition(os.sep)
    prefix = real.get(os.path.join(folder, ""))
    if prefix is None:
        return path
    return f"{prefix}/{file}" if prefix else file


def _mode(path: str) -> int:
    """What a link leads to; 0 for a broken link and for one to itself."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0
