"""The folder of one server: its sockets, the temporary files of its processes, and what TGI writes where it runs.

TGI's router leaves a copy of the tokenizer in its working directory, and PyTorch leaves temporary files. Both are kept
in this folder, which is removed with the server. It is locked as long as the server's supervisor lives, which tells a
server in use from what is left of one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tgi_launcher.locks import FileLock, take_lock
from tgi_launcher.own_folder import open_own_folder, own_folder, own_folder_name, why_unusable
from tgi_launcher.systems import require_posix

_PREFIX = "server-"
_CONTAINER = "container"
# A path of a Unix socket may have 108 bytes on Linux and 104 on macOS, and those of Python's and PyTorch's processes
# come to 50 behind the folder that all servers share.
_MAX_LENGTH = 50


class ServerFolder:
    """The folder of a server, locked.

    Attributes:
        path: Where it is, absolute.
        lock: To be handed to the supervisor.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self.lock = lock

    @property
    def sockets(self) -> str:
        """What the paths of the shards' sockets begin with."""
        return str(self.path / "shard")

    @property
    def work(self) -> str:
        """The working directory of TGI's processes."""
        return str(self.path / "work")

    @property
    def temporary(self) -> str:
        """Where TGI's processes have their temporary files."""
        return str(self.path / "tmp")

    def note_container(self, name: str) -> None:
        """Write down the name of its container, which a clean-up then knows without Docker.

        Raises:
            StartError: It cannot be written.
        """
        try:
            (self.path / _CONTAINER).write_text(name, encoding="ascii")
        except OSError as error:
            raise why_unusable(error, self.path) from error


def make_server_folder() -> ServerFolder:
    """Make and lock a folder for a new server.

    Raises:
        StartError: The temporary folder cannot be used, or what is there is another user's.
    """
    parent = _parents()[-1]
    try:
        os.close(open_own_folder(parent))
        folder = ServerFolder(*_make_and_lock(parent))
        try:
            for inner in (folder.work, folder.temporary):
                Path(inner).mkdir(mode=0o700)
        except BaseException:
            shutil.rmtree(folder.path, ignore_errors=True)
            folder.lock.release()
            raise
    except OSError as error:
        raise why_unusable(error, parent) from error
    return folder


@contextlib.contextmanager
def new_server_folder() -> Iterator[ServerFolder]:
    """A folder as `make_server_folder` makes it, removed again where the block fails: there is no server of it then.

    Raises:
        StartError: As `make_server_folder`.
    """
    folder = make_server_folder()
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.lock.release()
        raise


def _make_and_lock(parent: Path) -> tuple[Path, FileLock]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        # Until it is locked, a clean-up takes it for left.
        with contextlib.suppress(FileNotFoundError):
            if (lock := lock_server_folder(path)) is None:
                continue
            if path.exists():
                return path, lock
            lock.release()


def lock_server_folder(path: Path) -> FileLock | None:
    """Lock a server's folder; None if its server is in use.

    Raises:
        StartError: It is not in a folder of this user's own.
        OSError: There is none, or it cannot be locked.
    """

    def open_folder() -> int:
        require_posix()
        parent = open_own_folder(path.parent, make=False)
        try:
            return os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        finally:
            os.close(parent)

    return take_lock(open_folder)


def container_names(path: Path, listed: Sequence[str]) -> list[str]:
    """Names of a server's containers: those that Docker lists, and the one that its folder names."""
    names = set(listed)
    with contextlib.suppress(OSError, ValueError):
        names.add((path / _CONTAINER).read_text(encoding="ascii"))
    return sorted(names)


def is_server_folder(path: Path) -> bool:
    """Whether a path is one that `make_server_folder` makes."""
    return path.is_absolute() and path.name.startswith(_PREFIX) and path.parent.name == own_folder_name()


def server_folders() -> list[Path]:
    """The folders of this user's servers, in use or not."""
    found: list[Path] = []
    for parent in _parents():
        try:
            os.close(open_own_folder(parent, make=False))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise why_unusable(error, parent) from error
            continue
        with contextlib.suppress(OSError):
            found += [path for path in parent.iterdir() if path.name.startswith(_PREFIX) and not path.is_symlink()]
    return found


def _parents() -> list[Path]:
    """Where servers' folders may be; the last is where new ones go."""
    parents = [own_folder()]
    if len(os.fsencode(parents[0])) > _MAX_LENGTH and Path("/tmp").is_dir():  # noqa: S108  # checked to be this user's
        parents.append(Path("/tmp") / parents[0].name)  # noqa: S108
    return parents
