"""Who gets a name that several plugins offer."""

import dataclasses
from collections.abc import Mapping

from softprompt_zoo.registry.discovery import OWN_DISTRIBUTION, Candidate, normalize


@dataclasses.dataclass(frozen=True)
class Names:
    """What the names of all plugins find."""

    owners: Mapping[str, Candidate] = dataclasses.field(default_factory=dict)
    """Normalized name or alias to what it finds."""
    clashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Normalized name or alias that finds nothing to the reason."""
    problems: Mapping[Candidate, str] = dataclasses.field(default_factory=dict)
    """Candidate to the name that it cannot have, in a sentence."""


def assign_names(methods: list[Candidate]) -> Names:
    """Give each name to one method: built-in names and aliases first, then strangers' names, then their aliases."""
    claims: dict[str, dict[Candidate, tuple[int, str]]] = {}
    for candidate in methods:
        for rank, name in enumerate((candidate.name, *candidate.aliases)):
            claim = (0 if candidate.distribution == OWN_DISTRIBUTION else min(rank, 1) + 1, name)
            claims.setdefault(normalize(name), {}).setdefault(candidate, claim)
    owners: dict[str, Candidate] = {}
    clashes: dict[str, str] = {}
    problems: dict[Candidate, str] = {}
    for key, group in claims.items():
        best, name = min(group.values())
        ordered = sorted(group, key=lambda candidate: group[candidate][0])
        is_clash = [rank for rank, _ in group.values()].count(best) > 1
        offers = " and ".join(candidate.describe() for candidate in ordered)
        advice = "uninstall one, or use other names of theirs" if is_clash else "the first keeps it; rename the other"
        text = f"{len(group)} plugins offer the name {name!r}: {offers}; {advice}"
        if is_clash:
            clashes[key] = text
        else:
            owners[key] = ordered.pop(0)
        problems = dict.fromkeys(ordered, text) | problems
    usable = {key: c for key, c in owners.items() if owners.get(normalize(c.name)) == c}
    own = {c: tuple(alias for alias in c.aliases if usable.get(normalize(alias)) == c) for c in usable.values()}
    found = {key: dataclasses.replace(c, aliases=own[c]) for key, c in usable.items()}
    return Names(found, clashes, problems)
