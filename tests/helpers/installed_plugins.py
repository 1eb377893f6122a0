"""The packages under `plugins/` as pip would install them, without pip."""

import tomllib
from pathlib import Path

PLUGINS = Path(__file__).parents[2] / "plugins"


def install(folder, monkeypatch):
    """Put every package on the path of this process for the length of a test, with the metadata that announces it.

    Args:
        folder: An empty folder for the metadata.
        monkeypatch: pytest's.
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
