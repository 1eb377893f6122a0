"""Finding damage in the pages of an LMDB file.

LMDB trusts its pages: if some were swapped or overwritten, it aborts the process at the next write. Each page holds
its own number, so a walk from the root finds most such damage. Layout: `mdb.c` of LMDB 0.9, `MDB_meta`, `MDB_page` and
`MDB_node`.
"""

import collections
import os
import struct
from collections.abc import Iterator, Sequence

MAX_PAGES = 512
"""Maximum number of pages examined, in a few milliseconds. Larger banks are examined in part."""
_META = struct.Struct("<QHHI II QQ IHHQQQQQ IHHQQQQQ QQ")
_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_MAGIC = 0xBEEFC0DE
_BRANCH, _LEAF, _OVERFLOW, _META_FLAG = 1, 2, 4, 8
_IS_BIG = 1
_NO_PAGE = 2**64 - 1


def find_damage(path: str, transaction: int) -> str:
    """Examine the pages of one state of the file while a transaction protects it.

    Args:
        path: The file.
        transaction: Number of the state.

    Returns:
        What is wrong with a page; empty if nothing was found, or if a writer has moved on meanwhile.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        size = _page_size(file)
        for number in (0, 1):
            meta = os.pread(file, _META.size, number * size)
            problem = _problem_of_meta(meta, number)
            if problem is not None:
                return f"page {number} {problem}"
            fields = _META.unpack(meta)
            if fields[-1] == transaction:
                return next(_damage(file, size, _roots(fields), last=fields[24]), "")
        return ""
    finally:
        os.close(file)


def _page_size(file: int) -> int:
    """Read the page size from the first page."""
    start = os.pread(file, _META.size, 0)
    size = _META.unpack(start)[8] if len(start) == _META.size else 0
    return int(size) if size in {2**power for power in range(9, 17)} else 4096


def _problem_of_meta(meta: bytes, number: int) -> str | None:
    """Return what is wrong with one of the two pages that describe a state."""
    if len(meta) < _META.size:
        return "is missing"
    fields = _META.unpack(meta)
    is_one = fields[0] == number and fields[2] & _META_FLAG and fields[4] == _MAGIC
    return None if is_one else "is not what it should be"


def _roots(fields: Sequence[int]) -> list[int]:
    """Return the root pages of a state's trees."""
    return [root for root in (fields[15], fields[23]) if root != _NO_PAGE]


def _damage(file: int, size: int, roots: list[int], last: int) -> Iterator[str]:
    waiting = collections.deque((root, _BRANCH | _LEAF) for root in roots)
    seen: set[int] = set()
    while waiting and len(seen) < MAX_PAGES:
        number, kinds = waiting.popleft()
        if number > last or number < 2 or number in seen:
            yield f"page {number} is referred to but cannot exist"
            return
        seen.add(number)
        page = os.pread(file, size, number * size)
        problem = _problem(page, size, number, kinds)
        if problem is not None:
            yield f"page {number} {problem}"
            return
        _, _, flags, lower, _ = _PAGE.unpack_from(page)
        if flags & _OVERFLOW:
            continue
        try:
            waiting.extend(_children(page, flags, lower))
        except (struct.error, IndexError):
            yield f"page {number} has impossible entries"
            return


def _problem(page: bytes, size: int, number: int, kinds: int) -> str | None:
    """Return what is wrong with the header of a page."""
    if len(page) < size:
        return "is missing"
    own, _, flags, lower, upper = _PAGE.unpack_from(page)
    if own != number or not flags & kinds:
        return "is not what it should be"
    if not flags & _OVERFLOW and not _PAGE.size <= lower <= upper <= size:
        return "has impossible bounds"
    return None


def _children(page: bytes, flags: int, lower: int) -> Iterator[tuple[int, int]]:
    """Find the pages that a page refers to, and the kinds that they may be."""
    for place in range(_PAGE.size, lower, 2):
        start = int.from_bytes(page[place : place + 2], "little")
        low, high, third, key_size = _NODE.unpack_from(page, start)
        if flags & _BRANCH:
            yield low | high << 16 | third << 32, _BRANCH | _LEAF
        elif third & _IS_BIG:
            yield struct.unpack_from("<Q", page, start + _NODE.size + key_size)[0], _OVERFLOW
