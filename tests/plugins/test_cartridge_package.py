"""The cartridge package: its own tests, and what happens when it is installed and gone again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "plugins" / "softprompt-zoo-cartridge"
sys.path.insert(0, str(PACKAGE / "tests"))
from test_cartridge import *  # noqa: E402, F403 - its tests run here, without an installation
from test_cartridge_in_peft import *  # noqa: E402, F403
from test_self_study import *  # noqa: E402, F403

USE = """
import os
import sys
import torch
torch.set_num_threads(1)
import softprompt_zoo as zoo
from softprompt_zoo.testing import tiny_model

model = zoo.get_method("Cartridges")(tiny_model("llama"), num_virtual_tokens=4, document=[5, 6, 7, 8, 9])
text = torch.tensor([[10, 11, 12]])
model.train()(input_ids=text, labels=text).loss.backward()
model.save_pretrained(FOLDER)
with torch.no_grad():
    assert torch.equal(zoo.load(tiny_model("llama"), FOLDER)(input_ids=text).logits, model(input_ids=text).logits)
sys.path.remove(SITE)  # as if it had never been installed
os.environ["SOFTPROMPT_ZOO_PLUGINS"] = ""  # nor elsewhere
bare = tiny_model("llama")
try:
    zoo.load(bare, FOLDER)
except zoo.UnknownMethodError as error:
    print(error)
assert not hasattr(bare, "prompts")
"""


def test_it_is_installed_listed_used_and_missed(tmp_path):
    source, site, saved = tmp_path / "source", tmp_path / "site", tmp_path / "saved"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("tests", "build", "*.egg-info", "__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--disable-pip-version-check"]
    succeed(sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(source))
    shutil.rmtree(source)
    assert (site / "softprompt_zoo_cartridge" / "py.typed").exists()

    listed = succeed(sys.executable, "-m", "softprompt_zoo", "plugins", site=site)
    assert any("cartridge" in line and "softprompt-zoo-cartridge 0.1.0" in line for line in listed.splitlines())
    code = f"FOLDER = {str(saved)!r}\nSITE = {str(site)!r}\n" + USE
    told = succeed(sys.executable, "-c", code, site=site)
    assert told.startswith(f"{saved} needs the method 'cartridge', which is not installed")
    assert "pip install softprompt-zoo-cartridge==0.1.0" in told


def succeed(*command, site=None):
    environment = {name: value for name, value in os.environ.items() if name != "SOFTPROMPT_ZOO_PLUGINS"}
    # The folder stands first, so that the process finds it there under this very name.
    paths = [path for path in sys.path if not path.startswith(str(PACKAGE))]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [site, *paths] if site else paths))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
