"""The parameters of the frozen model, by their names in files."""

from collections.abc import Mapping

from torch import Tensor, nn

from softprompt_zoo.backbone.peft_layers import original_name
from softprompt_zoo.shapes import Shaped


class OwnParameters:
    """Finds a parameter by its qualified name in the user's model, with or without PEFT's adapters around it.

    Args:
        places: Modules by their names in the model.
    """

    def __init__(self, places: Mapping[str, nn.Module]) -> None:
        self._places = dict(places)

    def __call__(self, name: str) -> Shaped[Tensor, "..."] | None:
        """Return the parameter itself, not a copy; `None` if there is none with that name."""
        for place, module in self._places.items():
            prefix = f"{place}." if place else ""
            found = _parameter(module, name.removeprefix(prefix)) if name.startswith(prefix) else None
            if found is not None:
                return found
        return None


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    own = module.named_parameters(remove_duplicate=False)
    return next((parameter for found, parameter in own if original_name(found) == name), None)
