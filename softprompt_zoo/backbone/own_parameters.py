"""The parameters of the frozen model, as files name them."""

from collections.abc import Mapping

from torch import Tensor, nn

from softprompt_zoo.backbone.peft_layers import original_name
from softprompt_zoo.shapes import Shaped


class OwnParameters:
    """Finds a parameter by its qualified name in the user's model, with and without PEFT's adapters around it.

    Args:
        places: Modules by their names in the model.
    """

    def __init__(self, places: Mapping[str, nn.Module]) -> None:
        self._places = dict(places)

    def __call__(self, name: str) -> Shaped[Tensor, "..."] | None:
        """Return the parameter, not a copy; `None` if there is none of that name."""
        for place, module in self._places.items():
            prefix = f"{place}." if place else ""
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                for own, parameter in module.named_parameters(remove_duplicate=False):
                    if original_name(own) == rest:
                        return parameter
        return None
