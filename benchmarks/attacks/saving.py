"""Kills and full disks while a folder is replaced: afterwards it must hold the complete old or new state."""

import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch

import softprompt_zoo as zoo
from attacks.common import CLEAR, MIXED, RAW, RIGHT, Outcome, answer, describe, is_clear, killed, prompted, shaken
from softprompt_zoo.testing import tiny_model


def _lora(seed: int) -> Any:
    base = tiny_model("llama")
    base.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], lora_alpha=8), "lora")
    return shaken(zoo.get_method("prompt_tuning")(base, num_virtual_tokens=3 + seed), seed)


KINDS: dict[str, tuple[Callable[[int], Any], Callable[[Any, Path], Any]]] = {
    "prompt": (
        lambda seed: prompted(num_virtual_tokens=3 + seed, seed=seed),
        lambda model, path: model.save_pretrained(path),
    ),
    "LoRA": (_lora, lambda model, path: model.save_pretrained(path)),
    "PEFT": (lambda seed: prompted(num_virtual_tokens=3 + seed, seed=seed), zoo.export),
}


def saving(choose: random.Random, place: Path) -> Outcome:
    """Interrupt a save or an export that replaces another one at a random moment, and load the folder."""
    name = choose.choice(list(KINDS))
    make, save = KINDS[name]
    old, new = make(1), make(2)
    folder = place / "saved"
    shutil.rmtree(folder, ignore_errors=True)
    save(old, folder)
    if choose.random() < 0.6:
        seconds = choose.uniform(0.0, 0.05)
        killed(lambda: save(new, folder), seconds)
        what = f"{name}: killed after {seconds:.4f} s"
    else:
        size = choose.randrange(6000)
        what = f"{name}: no room beyond {size} bytes"
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
        try:
            save(new, folder)
        except Exception as error:
            if not (is_clear(error) or isinstance(error, OSError)):
                return f"{what} -> {describe(error)}", RAW
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    model = tiny_model("llama")
    try:
        zoo.load(model, folder)
    except Exception as error:
        return f"{what} -> {describe(error)}", CLEAR if is_clear(error) else RAW
    found = answer(model)
    is_one = any(torch.allclose(found, answer(state), atol=1e-5) for state in (old, new))
    return what, RIGHT if is_one else MIXED
