"""Writing files whole: one is either complete or absent, so nobody ever reads half of it."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing", "write_csv", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it takes ``path``'s place if the block ends without an error.

    The temporary name keeps the suffix, because NumPy and Stable-Baselines3 append one that is missing.

    :param path: file to create or replace; its folder must exist
    :raises OSError: the folder cannot be written to; it names ``path``
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename != str(temporary):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, all of it or nothing.

    :param path: file to create or replace
    :param text: its whole content
    :raises OSError: the folder cannot be written to
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write ``rows`` to ``path`` as CSV in UTF-8, all of them or nothing.

    :param path: file to create or replace
    :param rows: the header first
    :raises OSError: the folder cannot be written to
    """
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
