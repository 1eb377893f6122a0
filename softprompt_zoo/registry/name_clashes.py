"""Resolving names that several plugins offer.

Built-in names and aliases win over third-party names, and these over third-party aliases. Between equals nobody wins:
`Registry` raises `PluginError` when such a name is looked up. A method that loses its own name cannot be looked up by
its aliases either; one that loses an alias keeps its name. `Registry.reports` says what each lost.
"""

import dataclasses
from collections.abc import Mapping

from softprompt_zoo.registry.discovery import OWN_DISTRIBUTION, Candidate, normalize


@dataclasses.dataclass(frozen=True)
class Names:
    """How the names of all plugins are resolved."""

    owners: Mapping[str, Candidate] = dataclasses.field(default_factory=dict)
    """Normalized name or alias to the method it refers to."""
    clashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Normalized name or alias that nobody won, to the message of the error when it is looked up."""
    problems: Mapping[Candidate, str] = dataclasses.field(default_factory=dict)
    """Candidate to a sentence about the name that it cannot have."""


@dataclasses.dataclass(frozen=True, order=True)
class _Claim:
    """A candidate's claim to a name."""

    rank: int
    """0 for built-in names and aliases, 1 for third-party names, 2 for their aliases; the lowest gets the name."""
    name: str
    """As the candidate spells it."""
    candidate: Candidate = dataclasses.field(compare=False)


def assign_names(methods: list[Candidate]) -> Names:
    """Give each name to one method: built-in names and aliases first, then third-party names, then their aliases."""
    owners: dict[str, Candidate] = {}
    clashes: dict[str, str] = {}
    problems: dict[Candidate, str] = {}
    for key, claims in _claims(methods).items():
        is_clash = len(claims) > 1 and claims[0].rank == claims[1].rank
        text = _describe(claims, is_clash)
        if is_clash:
            clashes[key] = text
        else:
            owners[key] = claims[0].candidate
        losers = claims if is_clash else claims[1:]
        problems = {claim.candidate: text for claim in losers} | problems
    return Names(_without_lost_aliases(owners), clashes, problems)


def _claims(methods: list[Candidate]) -> dict[str, list[_Claim]]:
    """List the claims to each normalized name, strongest first, each candidate once."""
    found: dict[str, dict[Candidate, _Claim]] = {}
    for candidate in methods:
        is_own = candidate.distribution == OWN_DISTRIBUTION
        for position, name in enumerate((candidate.name, *candidate.aliases)):
            claim = _Claim(0 if is_own else min(position, 1) + 1, name, candidate)
            found.setdefault(normalize(name), {}).setdefault(candidate, claim)
    return {key: sorted(group.values(), key=lambda claim: claim.rank) for key, group in found.items()}


def _describe(claims: list[_Claim], is_clash: bool) -> str:
    offers = " and ".join(claim.candidate.describe() for claim in claims)
    advice = "uninstall one, or use their other names" if is_clash else "the first keeps it; rename the other"
    return f"{len(claims)} plugins offer the name {min(claims).name!r}: {offers}; {advice}"


def _without_lost_aliases(owners: Mapping[str, Candidate]) -> dict[str, Candidate]:
    """Drop candidates that did not get their own name, and the aliases that the others did not get."""
    usable = {key: candidate for key, candidate in owners.items() if owners.get(normalize(candidate.name)) == candidate}

    def kept(candidate: Candidate) -> Candidate:
        aliases = tuple(alias for alias in candidate.aliases if usable.get(normalize(alias)) == candidate)
        return dataclasses.replace(candidate, aliases=aliases)

    return {key: kept(candidate) for key, candidate in usable.items()}
