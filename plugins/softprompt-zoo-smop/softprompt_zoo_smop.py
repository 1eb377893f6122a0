"""SMoP: trains several short prompts, and a router that gives each row one of them by its text.

    x = mean of the embeddings of the row's text                      (hidden)
    scores = router x                                                 (prompts)
    scores = scores * (1 + noise * n), n standard normal              in training
    p = softmax(scores);  j = argmax p
    virtual_tokens = p[j] * prompts[j]                                (tokens, hidden)

Enters at: the input embeddings; different virtual tokens for every row.
Trained: prompts * tokens * hidden + prompts * hidden.
Merges to: nothing; which prompt a row gets depends on its text.

Source: Choi, Kim, Park, Mok and Lee, "SMoP: Towards Efficient and Effective Prompt Tuning with Sparse
Mixture-of-Prompts", 2023 (EMNLP 2023, aclanthology.org/2023.emnlp-main.884), section 2; reference code
jyjohnchoi/SMoP, `peft_models/tuners/prompt_routing.py`.
Differs from the source: the prompts start from words, multiplied by the number of prompts, so that with an undecided
router the virtual tokens have the norm of words; the reference's start is `init="random"`. Its load-balancing loss is
left out: the noise of its `perturb_router` spreads the rows. Causal models and encoders are supported, too.
PEFT: none of its types can hold a prompt that depends on the text.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

import softprompt_zoo as zoo

ALIASES = ("sparse_mixture_of_prompts",)
RECIPE = zoo.Recipe(
    learning_rate=3e-2,
    steps=200,
    source="the better of 3e-2, prompt tuning's, and 1e-1 in 30 steps on films with SmolLM2-135M "
    "(benchmarks/recipes.py --steps 30 --rows 100); the script has 0.5 for T5-base, batches of 32 and 50 epochs",
)
EXAMPLE_OPTIONS = ({"num_virtual_tokens": 5, "num_prompts": 3, "noise": 0.0}, {"num_virtual_tokens": 7})
INITS = ("sampled", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(zoo.MethodConfig):
    """Options of SMoP."""

    num_virtual_tokens: int = 5
    """Virtual tokens per prompt, at least 1. Source: the paper, section 3.1."""
    num_prompts: int = 4
    """Number of prompts that the router chooses from. Source: the paper, section 3.1."""
    num_chosen: int = 1
    """How many of them a row gets, each multiplied by its probability, and summed; the reference's `topk`."""
    noise: float = 1.0
    """Standard deviation of the noise on the router's scores in training, relative to each score. Source: the
    reference's `GaussianNoise`."""
    init: Any = dataclasses.field(default="sampled", metadata={"names": INITS})
    """Start of the prompts: `"sampled"` frequent words, different for each; `"random"` standard normal numbers, as in
    the reference; or another prompt, the same for all: its saved folder, or `model.prompts[name]`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zoo.check_positive_integer("num_prompts", self.num_prompts)
        zoo.check_positive_integer("num_chosen", self.num_chosen)
        if self.num_chosen > self.num_prompts:
            raise ValueError(
                f"num_chosen is {self.num_chosen}, but there are {self.num_prompts} prompts; choose at most that many"
            )
        zoo.check_not_negative("noise", self.noise)
        zoo.check_init(self.init, INITS, None, None, None)


class Parameters(nn.Module):
    """The prompts and the router."""

    def __init__(self, config: Config, backbone: zoo.Backbone) -> None:
        super().__init__()
        hidden = backbone.hidden_size
        options: dict[str, Any] = {
            "dtype": torch.promote_types(backbone.dtype, torch.float32),
            "device": backbone.device,
        }
        self.prompts = nn.Parameter(torch.empty(config.num_prompts, config.num_virtual_tokens, hidden, **options))
        self.router = nn.Parameter(torch.empty(config.num_prompts, hidden, **options))
        self._config = config

    @torch.no_grad()
    def initialize(self, config: Config, backbone: zoo.Backbone) -> None:
        """Start the prompts from words or noise, and the router from orthogonal rows."""
        if config.init == "random":
            self.prompts.normal_()
        else:
            words = [zoo.sampled_ids(backbone, config.num_virtual_tokens) for _ in range(config.num_prompts)]
            self.prompts.copy_(self._share() * backbone.embed(torch.stack(words)))
        nn.init.orthogonal_(self.router)

    @torch.no_grad()
    def start_from(self, tokens: zoo.VirtualTokens) -> None:
        """Start all prompts from the plain tokens of another prompt."""
        if not isinstance(tokens, zoo.InputTokens):
            raise zoo.UnsupportedError(
                "smop cannot start from keys and values; give a prompt at the input embeddings as init"
            )
        self.prompts.copy_(self._share() * tokens.embeddings)
        nn.init.orthogonal_(self.router)

    def probabilities(self, text: zoo.Text) -> Tensor:
        """Return the router's probability for each prompt.

        Args:
            text: What the rows say.

        Returns:
            `(rows, prompts)`, with sum one in each row; gradients flow to the router.
        """
        mask = text.mask[..., None]
        means = (text.embeddings * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        scores = means.to(self.router) @ self.router.T
        if self.training and self._config.noise:
            scores = scores * (1 + self._config.noise * torch.randn_like(scores))
        return scores.softmax(dim=-1)

    def forward(self, text: zoo.Text) -> Tensor:
        """Return the virtual tokens `(rows, tokens, hidden)`; gradients flow to chosen prompts and the router."""
        weights, chosen = self.probabilities(text).topk(self._config.num_chosen, dim=-1)
        return torch.einsum("rc,rcth->rth", weights, self.prompts[chosen])

    def _share(self) -> float:
        """Return the factor that makes up for the probabilities of an undecided router."""
        return self._config.num_prompts / self._config.num_chosen


@zoo.hookimpl
def build_virtual_tokens(parameters: Parameters, text: zoo.Text) -> zoo.VirtualTokens:
    """Give each row the prompt that the router chooses for its text."""
    return zoo.InputTokens(parameters(text))
