"""Write a file or a folder so that a reader sees the old or the new one, never half of either; one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from forethought.errors import ArtefactError

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows has none

# what an OSError says of a place to write to, and a user can mend by freeing or choosing another
PLACE = {
    errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR, errno.EEXIST,
    errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def _explain(target: Path, error: OSError) -> ArtefactError:
    reason = error.strerror or f"{error}; is the disk full?"  # numpy reports a short write without a reason
    return ArtefactError(f"Cannot write {target}: {reason}; free the space or choose another place.")


def refuse_existing(target: str | os.PathLike[str], advice: str = "choose another folder or remove it first") -> None:
    """Stop before the work is begun where its result has no place.

    Raises:
        ArtefactError: ``target`` exists; ``advice`` says what can be done.
    """
    if Path(os.path.abspath(target)).exists():  # as it is written: a/../b is b though there is no a
        raise ArtefactError(f"{target} exists already; {advice}.")


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder where it is missing, and inside hold it against other processes that want to claim it.

    The claim ends with the process, however that ends, and leaves no file. Where the system or its disk has no such
    lock (Windows, some network disks), nothing is held.

    Raises:
        ArtefactError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explain(folder, error) from error
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ArtefactError(
                f"Another process is writing {folder}; wait until it has ended, or choose another folder."
            ) from error
        except OSError:  # a disk without locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_folder(target: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes ``target`` when the block ends without an error.

    Raises:
        ArtefactError: ``target`` exists and ``replace`` is false, or the place cannot be written.
    """
    given, target = Path(target), Path(os.path.abspath(target))  # "." has no name of its own
    if not replace:
        refuse_existing(given)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise _explain(given, error) from error
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())
        if target.exists():
            _exchange(scratch, target)
        else:
            os.rename(scratch, target)
    except OSError as error:
        raise _explain(given, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _exchange(scratch: Path, target: Path) -> None:
    """Put a folder in the place of another; where that fails the old one stays."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        os.rename(target, aside / "old")
        os.rename(scratch, target)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to tell
            if (aside / "old").exists():
                os.rename(aside / "old", target)
            aside.rmdir()
        raise
    shutil.rmtree(aside)


@contextlib.contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that replaces it when the block ends without an error."""
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=f".part{target.suffix}", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise _explain(target, error) from error
    scratch = Path(name)
    try:
        yield scratch
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, target)
    except OSError as error:
        raise _explain(target, error) from error
    finally:
        scratch.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
