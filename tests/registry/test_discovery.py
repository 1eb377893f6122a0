"""Installed plugins are known from metadata and source text only."""

import subprocess
import sys
from importlib import metadata

import pytest

from softprompt_zoo.methods import BUILTINS
from softprompt_zoo.registry import discovery
from softprompt_zoo.registry.registry import fingerprint


@pytest.fixture
def publish(tmp_path, monkeypatch):
    """Return a function that lays out a distribution as pip would, in a folder on the path."""
    monkeypatch.delenv(discovery.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def lay_out(entries, source="", module="stranger", distribution="softprompt-zoo-stranger", summary="From metadata"):
        info = tmp_path / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        summary = f"Summary: {summary}\n" if summary else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n{summary}")
        (info / "entry_points.txt").write_text(entries)
        if source is not None:
            path = tmp_path / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source if isinstance(source, bytes) else source.encode())
        return tmp_path

    return lay_out


def strangers(kind="method"):
    found = [one for one in discovery.find_plugins() if one.distribution != discovery.OWN_DISTRIBUTION]
    return [candidate for candidate in found if candidate.kind == kind]


def stranger():
    found = [candidate for candidate in strangers() if candidate.name == "mine"]
    assert len(found) == 1
    return found[0]


METHOD = "[softprompt_zoo]\nmine = stranger\n"


def test_the_built_in_methods_come_first_and_are_entry_points_like_any_other(publish):
    publish(METHOD)
    names = [candidate.name for candidate in discovery.find_plugins()]
    assert tuple(names[: len(BUILTINS)]) == BUILTINS
    assert "mine" in names[len(BUILTINS) :]
    for candidate in discovery.find_plugins()[: len(BUILTINS)]:
        assert candidate.origin == f"softprompt-zoo {discovery.own_version()}"
        assert candidate.summary


def test_the_own_version_is_known_and_missing_metadata_is_no_error(monkeypatch):
    assert discovery.own_version() == metadata.version("softprompt-zoo")
    monkeypatch.setattr(discovery, "OWN_DISTRIBUTION", "softprompt-zoo-not-there")
    assert discovery.own_version() == "unknown"


@pytest.mark.parametrize(
    ("source", "aliases", "summary"),
    [
        ('"""First line.\n\nSecond."""\nALIASES = ("a", "b_c")\n', ("a", "b_c"), "First line."),
        ('ALIASES: tuple[str, ...] = ("a",)\n', ("a",), "From metadata"),
        ('ALIASES = ["a"]\n', ("a",), "From metadata"),
        ('ALIASES = ("a" + "b",)\n', (), "From metadata"),
        ('"""Kept."""\nALIASES = make()\n', (), "Kept."),
        ('ALIASES = "a"\n', (), "From metadata"),
        ("ALIASES = 3\n", (), "From metadata"),
        ('ALIASES: "tuple"\n', (), "From metadata"),
        ('import torch\nraise RuntimeError("imported")\n', (), "From metadata"),
        ("def broken(:\n", (), "From metadata"),
        (b"\x00\xff\xfe", (), "From metadata"),
        ("# -*- coding: latin-1 -*-\n'''Prüfung.'''\n".encode("latin-1"), (), "Prüfung."),
        ('"""Odd \\escape."""\n', (), "Odd \\escape."),
        ("(" * 5000, (), "From metadata"),
        (None, (), "From metadata"),
    ],
)
def test_aliases_and_summary_are_read_from_source_without_importing_it(publish, recwarn, source, aliases, summary):
    publish(METHOD, source)
    candidate = stranger()
    assert (candidate.aliases, candidate.summary) == (aliases, summary)
    assert "stranger" not in sys.modules
    assert not recwarn.list


def test_a_class_in_a_module_has_a_summary_and_aliases_of_its_own(publish):
    source = '"""Module."""\nALIASES = ("outer",)\nclass Mine:\n  """Class."""\n  ALIASES = ("inner",)\nobj = Mine()\n'
    publish("[softprompt_zoo]\nmine = stranger:Mine\nother = stranger:obj\n", source)
    found = {candidate.name: candidate for candidate in strangers()}
    assert (found["mine"].aliases, found["mine"].summary) == (("inner",), "Class.")
    assert (found["other"].aliases, found["other"].summary) == (("outer",), "Module.")


def test_a_module_inside_a_package_is_read_without_importing_the_package(publish):
    folder = publish(
        "[softprompt_zoo]\nmine = outer_package.inner.page\n", '"""Deep."""\n', module="outer_package.inner.page"
    )
    for package in ("outer_package", "outer_package/inner"):
        (folder / package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    assert stranger().summary == "Deep."
    assert not [name for name in sys.modules if name.startswith("outer_package")]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_anywhere", "No module named 'no_such_module_anywhere'"),
        ("no_such.sub.module", "No module named 'no_such'"),
        ("not a module!", "its entry point is 'not a module!'; expected 'module' or 'module:attribute'"),
        ("", "its entry point is ''; expected 'module' or 'module:attribute'"),
    ],
)
def test_an_entry_that_leads_nowhere_is_still_listed(publish, value, reason):
    publish(f"[softprompt_zoo]\nmine = {value}\n", None, summary=None)
    candidate = stranger()
    assert (candidate.origin, candidate.summary, candidate.aliases) == ("softprompt-zoo-stranger 1.5", "", ())
    with pytest.raises((ImportError, ValueError), match=f"^{reason}$"):
        candidate.load()


def test_a_distribution_without_metadata_is_still_listed(publish):
    folder = publish(METHOD)
    (folder / "softprompt_zoo_stranger-1.5.dist-info" / "METADATA").unlink()
    assert stranger().distribution == "unknown"


def test_wrappers_are_found_in_a_group_of_their_own(publish):
    publish("[softprompt_zoo.wrappers]\nmine = stranger\n", '"""Around."""\n')
    [wrapper] = strangers("wrapper")
    assert (wrapper.kind, wrapper.summary) == ("wrapper", "Around.")
    assert wrapper.describe() == "wrapper 'mine' of softprompt-zoo-stranger 1.5"
    assert not [candidate for candidate in strangers() if candidate.name == "mine"]


@pytest.mark.parametrize(
    ("allowed", "is_found"),
    [
        (None, True),
        ("", False),
        (" , ", False),
        ("other", False),
        ("mine", True),
        ("other, MINE", True),
        ("softprompt_zoo_stranger", True),
        ("softprompt-zoo-stranger", True),
    ],
)
def test_the_environment_variable_limits_strangers_but_not_the_built_in_methods(
    publish, monkeypatch, allowed, is_found
):
    publish(METHOD + "[softprompt_zoo.wrappers]\nmine = stranger\n")
    if allowed is not None:
        monkeypatch.setenv(discovery.ENVIRONMENT_VARIABLE, allowed)
    assert ("mine" in [candidate.name for candidate in strangers()]) is is_found
    assert ("mine" in [candidate.name for candidate in strangers("wrapper")]) is is_found
    assert set(BUILTINS) <= {candidate.name for candidate in discovery.find_plugins()}


def test_the_fingerprint_changes_with_what_may_load(publish, tmp_path, monkeypatch):
    before = fingerprint()
    assert fingerprint() == before
    monkeypatch.setenv(discovery.ENVIRONMENT_VARIABLE, "")
    limited = fingerprint()
    assert limited != before
    publish(METHOD)
    installed = fingerprint()
    assert installed != limited
    monkeypatch.syspath_prepend(tmp_path / "more")
    assert fingerprint() != installed


PROBE = """
import sys, time
start = time.process_time()
import softprompt_zoo as zoo
seconds = time.process_time() - start
names = zoo.list_methods()
heavy = sorted({"torch", "transformers", "numpy", "stranger"} & set(sys.modules))
print(seconds, "mine" in names, heavy)
"""


def test_importing_and_listing_are_quick_and_import_neither_torch_nor_plugins(publish, monkeypatch):
    folder = publish(METHOD, 'print("stranger ran")\nraise RuntimeError("imported")\n')
    monkeypatch.setenv("PYTHONPATH", str(folder))
    seconds = []
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
        taken, rest = done.stdout.split(" ", 1)
        assert rest.strip() == "True []"
        seconds.append(float(taken))
    assert min(seconds) < 0.15
