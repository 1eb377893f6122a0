"""The packages under `plugins/`, installed without pip, or with pip in a fresh process."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import softprompt_zoo as zoo

PLUGINS = Path(__file__).parents[2] / "plugins"
PIP = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check", "--target"]
"""Options of `pip install`; the target folder comes next."""


def install(folder, monkeypatch):
    """Put every package, with the metadata that announces it, on the path of this process for one test.

    Args:
        folder: An empty folder for the metadata.
        monkeypatch: pytest's fixture.
    """
    for source in sorted(path.parent for path in PLUGINS.glob("*/pyproject.toml")):
        project = tomllib.loads((source / "pyproject.toml").read_text("utf-8"))["project"]
        name, version = project["name"], project["version"]
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = project.get("entry-points", {}).items()
        lines = [f"[{group}]\n" + "".join(f"{n} = {m}\n" for n, m in entries.items()) for group, entries in groups]
        (info / "entry_points.txt").write_text("".join(lines))
        monkeypatch.syspath_prepend(source)
    monkeypatch.syspath_prepend(folder)


def run(*command, site=None, timeout=300):
    """Run Python in a fresh process, with a folder on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "SOFTPROMPT_ZOO_PLUGINS"}
    environment["PYTHONPATH"] = os.pathsep.join(
        map(str, [Path(zoo.__file__).parents[1], *([] if site is None else [site])])
    )
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PLUGINS.parent, timeout=timeout)
