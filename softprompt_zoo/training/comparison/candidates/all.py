"""The candidates by name: every baseline, and every method of the registry."""

from softprompt_zoo.training.comparison.candidates.adapter_tuning import AdapterTuning
from softprompt_zoo.training.comparison.candidates.candidate import Candidate
from softprompt_zoo.training.comparison.candidates.few_shot import FewShot
from softprompt_zoo.training.comparison.candidates.full_fine_tuning import FullFineTuning
from softprompt_zoo.training.comparison.candidates.handwritten import Handwritten
from softprompt_zoo.training.comparison.candidates.lora import Lora
from softprompt_zoo.training.comparison.candidates.soft_prompt import SoftPrompt
from softprompt_zoo.training.comparison.candidates.untrained import Untrained

_BASELINES: tuple[type[Candidate], ...] = (Untrained, Handwritten, FewShot, Lora, AdapterTuning, FullFineTuning)
BASELINE_CLASSES: dict[str, type[Candidate]] = {cls.name: cls for cls in _BASELINES}


def find_candidate(name: str) -> Candidate:
    """Return a candidate.

    Args:
        name: Name of a baseline, or name or alias of a method.

    Raises:
        UnknownMethodError: If there is no candidate of that name.
    """
    baseline = BASELINE_CLASSES.get(name)
    return SoftPrompt(name) if baseline is None else baseline()
