"""The ways to reach a stack, in the order to try: a new one is a file next to this one, and a line here.

`RealPositions` is not in the list: it finds nothing, but is made, with the reason, for a stack that none of these
reaches (`trial.choice_of_reach`).
"""

from softprompt_zoo.sites.reach.reach import Reach
from softprompt_zoo.sites.reach.replaced_attention import ReplacedAttention
from softprompt_zoo.sites.reach.through_cache import ThroughCache
from softprompt_zoo.sites.reach.through_interface import ThroughInterface

REACHES: tuple[Reach, ...] = (
    ThroughInterface(),
    ReplacedAttention(),
    ThroughCache(),
)
