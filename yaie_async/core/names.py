"""Checks of names that a server or a caller chooses (paths, etags, commits) before they are used on the disk."""

import re
from pathlib import PurePosixPath, PureWindowsPath

from yaie_async.core.errors import UnsafeFileError, printable

_HEX = re.compile(r"[0-9a-f]+")


def check_path(path: str, *, model: str, listed_in: str = "its listing") -> None:
    """Refuse, with UnsafeFileError, a path that could leave its folder, by the rules of POSIX and of Windows."""
    parts = path.replace("\\", "/").split("/")
    windows = PureWindowsPath(path)
    if (
        any(part in ("", ".", "..") for part in parts)
        or "\0" in path
        or not _encodes(path)
        or windows.drive
        or windows.root
        or PurePosixPath(path).is_absolute()
    ):
        raise UnsafeFileError(
            f"{model}: {listed_in} names the file {printable(path)!r}, which is outside the model; nothing was read or "
            "written. Do not use this model, and report it to the Hub.",
            model=model,
            file=path,
        )


def check_etag(etag: str, *, model: str, file: str) -> None:
    """Refuse, with UnsafeFileError, an etag that is not a plain file name, because it names a blob."""
    plain = etag not in ("", ".", "..") and not any(c in etag for c in "/\\\0") and len(etag) <= 200
    if not plain or not _encodes(etag):
        raise UnsafeFileError(
            f"The server names {file} of {model} by the etag {printable(etag)!r}, which is not a plain name. "
            "Nothing was written. Check HF_ENDPOINT: a Hub does not send such etags.",
            model=model,
            file=file,
        )


def _encodes(name: str) -> bool:
    """Whether a name from JSON can be encoded. JSON allows lone surrogates, which no encoding of file names has."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_commit(revision: str) -> bool:
    """Whether a revision is a full commit hash, by the rule of the official client (lower-case hex only)."""
    return len(revision) == 40 and _HEX.fullmatch(revision) is not None


def digest_kind(etag: str | None) -> str | None:
    """Which digest an etag is, in upper or lower case: "sha256" or "git-sha1"; None for any other etag."""
    return {64: "sha256", 40: "git-sha1"}.get(len(etag)) if etag and _HEX.fullmatch(etag.lower()) else None
