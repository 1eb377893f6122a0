"""A stand-in for the method of a merged prompt whose plugin is not installed: the file says where its tokens go."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn, Self

from softprompt_zoo.config.options import MethodConfig
from softprompt_zoo.errors import UnknownMethodError
from softprompt_zoo.hookspecs import hookimpl
from softprompt_zoo.registry.discovery import GROUP, Candidate, install_advice
from softprompt_zoo.registry.loaded_method import LoadedMethod
from softprompt_zoo.registry.wrappers import Wrappers

if TYPE_CHECKING:
    from softprompt_zoo.backbone.backbone import Backbone
    from softprompt_zoo.tokens.placement import Placement
    from softprompt_zoo.tokens.virtual_tokens import VirtualTokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptOptions(MethodConfig):
    """Options of a method that is not installed: those of every method, and the others as saved."""

    num_tasks: int | None = None
    kept: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_options(cls, options: dict[str, Any], owner: str = "") -> Self:
        """Keep all options; errors as in `MethodConfig.from_options`, for those that every method has."""
        own = {field.name for field in dataclasses.fields(cls)} - {"kept"}
        return super().from_options({name: options[name] for name in own & {*options}} | {"kept": options}, owner)

    def to_dict(self) -> dict[str, Any]:
        """Return what was saved, with the current values of the options that every method has."""
        now = super().to_dict()
        kept = now.pop("kept")
        return {**kept, **{name: now[name] for name in now if name in kept}}


@dataclasses.dataclass(frozen=True)
class AbsentMethod:
    """A file's description of a method, acting as its plugin."""

    name: str
    """Canonical name."""
    distribution: str
    """Package that offered it."""
    version: str
    """Version of that package."""
    placement: Mapping[str, Any]
    """Fields of the `Placement` that its `inject` returned."""

    Config = KeptOptions

    def loaded(self, wrappers: Wrappers) -> LoadedMethod:
        """Return a method that places the tokens as the original did, within these wrappers."""
        candidate = Candidate(self.name, GROUP, self.distribution, self.version, lambda: self)
        return LoadedMethod(candidate, self, wrappers, self)

    @hookimpl
    def build_virtual_tokens(self, backbone: "Backbone") -> NoReturn:
        """Refuse; this is not called for a merged prompt."""
        self.Parameters(None, backbone)

    @hookimpl
    def inject(self, tokens: "VirtualTokens") -> "Placement":
        """Place the tokens as the file says."""
        from softprompt_zoo.tokens.placement import Placement  # torch loads slowly; listing methods does not need it

        return Placement(tokens, **self.placement)

    def _refuse(self, config: Any, backbone: "Backbone") -> NoReturn:
        advice = install_advice(self.distribution, self.version)
        raise UnknownMethodError(f"the method {self.name!r} is not installed, so it cannot make new tokens; {advice}")

    Parameters = _refuse
