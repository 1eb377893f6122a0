"""Banks whose file is damaged, whose writer is killed, or whose store fails."""

import random
import shutil
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

import softprompt_zoo as zoo
from attacks.common import CHANGED, CLEAR, MIXED, OTHER, RAW, RIGHT, SAME, Outcome, describe, is_clear, killed, prompted
from softprompt_zoo.bank import records


class _StoreError(Exception):
    """An error like those of an object store's own client, which are not `OSError`s."""


class _Failing(MemoryFileSystem):
    """An object store in memory whose operations fail at random."""

    protocol = "attacked"
    store: dict[str, Any] = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False
    choose: random.Random | None = None
    chance = 0.0

    def _fails(self) -> bool:
        return self.choose is not None and self.choose.random() < self.chance

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if self._fails() and self.choose is not None:
            size = self.choose.choice([0, len(value) // 2, len(value)])
            if size:
                super().pipe_file(path, value[:size], mode="overwrite")
            raise self.choose.choice([_StoreError("503"), TimeoutError(), OSError("reset")])
        super().pipe_file(path, value, mode=mode, **options)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self._fails():
            raise _StoreError("502")
        data: bytes = super().cat_file(path, start, end, **options)
        return data

    def rm_file(self, path: str) -> None:
        if self._fails():
            raise _StoreError("500")
        super().rm_file(path)


fsspec.register_implementation("attacked", _Failing, clobber=True)


def banks(choose: random.Random, place: Path) -> Outcome:
    """Harm a bank in one way, and use it."""
    return choose.choice([_damaged, _killed, _failing, _fuzzed])(choose, place)


def _first(prompt: Any) -> float:
    return float(next(prompt.parameters()).flatten()[0])


def _filled(address: str) -> tuple[Any, Any]:
    model = prompted()
    bank = zoo.PromptBank(address, model)
    bank.add_many({f"p{index}": model.prompts["default"] for index in range(30)})
    return bank, model


def _damaged(choose: random.Random, place: Path) -> Outcome:
    folder = place / "bank"
    shutil.rmtree(folder, ignore_errors=True)
    bank, model = _filled(str(folder))
    bank._store._file.close()
    bank.close()
    data = bytearray((folder / "data.mdb").read_bytes())
    start = 4096 * choose.randrange(len(data) // 4096)
    kind = choose.choice(["zeros", "noise", "bytes", "cut"])
    if kind == "bytes":
        for _ in range(8):
            data[start + choose.randrange(64)] = choose.randrange(256)
    elif kind == "cut":
        del data[start:]
    else:
        data[start : start + 4096] = bytes(4096) if kind == "zeros" else choose.randbytes(4096)
    (folder / "data.mdb").write_bytes(data)
    what, value = f"{kind} at {start}", _first(model.prompts["default"])
    try:
        bank = zoo.PromptBank(folder, model)
        names = list(bank)
        for name in names:
            if _first(bank[name]) != value:
                return f"{what}: another prompt came back", OTHER
        bank.add("new", model.prompts["default"])
        bank.delete(*names[:3])
    except Exception as error:
        return f"{what} -> {describe(error)}", CLEAR if is_clear(error) else RAW
    return what, RIGHT


def _fuzzed(choose: random.Random, place: Path) -> Outcome:
    """Let an engine read an entry with changed bytes; in half of the cases, the checksum matches them."""
    address = "memory://fuzzed"
    model = prompted()
    zoo.PromptBank(address, model, as_prefix=True).add("x", model.prompts["default"], overwrite=True)
    reader = zoo.PrefixReader(address)
    path = next(path for path in MemoryFileSystem.store if path.startswith("/fuzzed/") and path.endswith("x.prompt"))
    whole = MemoryFileSystem.store[path].getvalue()
    body = bytearray(whole[records.STAMP_SIZE :])
    end = records.header_end(whole) - records.STAMP_SIZE
    within = choose.choice([4, end, len(body)])  # the header's length, the header, everything
    kind = choose.choice(["bytes", "cut", "more", "value"])
    if kind == "cut":
        del body[choose.randrange(len(body)) :]
    elif kind == "more":
        body[within:within] = choose.randbytes(choose.choice([1, 16, 4096]))
    elif kind == "value":
        text = bytes(body[4:end])
        old = choose.choice([b"[2,32]", b"float32", b"decoder", b":1,", b"softprompt-zoo", b"{", b'"'])
        text = text.replace(
            old, choose.choice([b"[-1]", b"[]", b"null", b"1e999", b"float64", b"[[" * 999, b"int64", b""])
        )
        body[:end] = len(text).to_bytes(4, "little") + text
    else:
        for _ in range(choose.choice([1, 8])):
            body[choose.randrange(within)] = choose.randrange(256)
    is_sealed = choose.random() < 0.5
    new = records.seal("x", bytes(body)) if is_sealed else whole[: records.STAMP_SIZE] + bytes(body)
    MemoryFileSystem().pipe_file(path, new)
    what = f"{kind} within {within}{', sealed' if is_sealed else ''}"
    try:
        entry = reader.find("x")
        prefix = reader.read("x")
    except Exception as error:
        return f"{what} -> {describe(error)}", CLEAR if is_clear(error) else RAW
    shapes = {tuple(part.shape) for layer in prefix.layers for part in layer}
    is_right = entry == prefix.entry and shapes == {(2, entry.num_tokens, 8)} and len(prefix.layers) == 2
    is_finite = all(bool(part.isfinite().all()) for layer in prefix.layers for part in layer)
    return what, (RIGHT if is_sealed else SAME if new == whole else OTHER) if is_right and is_finite else OTHER


def _killed(choose: random.Random, place: Path) -> Outcome:
    folder = place / "bank"
    shutil.rmtree(folder, ignore_errors=True)
    is_new = choose.random() < 0.3
    model = prompted()
    if not is_new:
        _filled(str(folder))[0]._store._file.close()

    def write() -> None:
        bank = zoo.PromptBank(folder, model)
        for index in range(1000):
            bank.add_many({f"a{index}": model.prompts["default"], f"b{index}": model.prompts["default"]})

    seconds = choose.uniform(0.0, 0.06)
    killed(write, seconds)
    bank = zoo.PromptBank(folder, model)
    names, problems = set(bank), bank.verify()
    is_whole = not problems and all((f"a{index}" in names) == (f"b{index}" in names) for index in range(1000))
    bank.add("after", model.prompts["default"])
    return f"{'new' if is_new else 'filled'}, killed after {seconds:.4f} s", RIGHT if is_whole else MIXED


def _failing(choose: random.Random, place: Path) -> Outcome:
    _Failing.store.clear()
    _Failing.choose, _Failing.chance = None, choose.choice([0.05, 0.3, 0.9])
    bank, _ = _filled("attacked://bank")
    other = prompted(seed=5).prompts["default"]
    before = {path: file.getvalue() for path, file in _Failing.store.items()}
    _Failing.choose = choose
    action = choose.choice(["overwrite", "add", "delete", "read"])
    what = f"{action}, {_Failing.chance:.0%} of the calls fail"
    try:
        if action == "overwrite":
            bank.add_many({f"p{index}": other for index in range(5)}, overwrite=True)
        elif action == "add":
            bank.add_many({f"q{index}": other for index in range(5)})
        elif action == "delete":
            bank.delete("p1", "p2", "p3")
        else:
            bank.verify()
    except zoo.BankError as error:
        after = {path: file.getvalue() for path, file in _Failing.store.items()}
        is_told = "could be put back" in str(error) or after == before
        return f"{what} -> {describe(error)}", CLEAR if is_told else CHANGED
    except Exception as error:
        return f"{what} -> {describe(error)}", RAW
    finally:
        _Failing.choose = None
    return what, RIGHT
