"""The scheduler's side: deciding what each request gets."""

import concurrent.futures
import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import softprompt_zoo as zoo
from softprompt_zoo_vllm.catalog import Catalog, PromptRefusedError
from softprompt_zoo_vllm.executors import executor_for
from softprompt_zoo_vllm.requests import length_problem, make_room, problem_of, prompt_of, take_room_back
from softprompt_zoo_vllm.settings import KEY, Settings
from softprompt_zoo_vllm.steps import Load, Step

logger = logging.getLogger(f"vllm.{__name__}")


@dataclasses.dataclass
class Plan:
    """What a request gets, from its arrival to its end; preempted requests load their prompt again."""

    coming: concurrent.futures.Future[zoo.PrefixEntry] | None
    """The lookup, until its result has been used."""
    entry: zoo.PrefixEntry | None = None
    """The prompt, once the request has room for it."""
    problem: str | None = None
    """Why the request ends with an error."""
    salt: str | None = None
    """The request's original salt, before room was made."""


class Planner:
    """Makes room in requests for their prompts, and determines which blocks the workers fill.

    Args:
        settings: The deployment's settings.
        catalog: The bank.
        block_sizes: Tokens per block, for each group of the cache.
        max_model_len: Length of the context in tokens.
    """

    def __init__(self, settings: Settings, catalog: Catalog, block_sizes: Sequence[int], max_model_len: int) -> None:
        self._settings = settings
        self._catalog = catalog
        self._block_sizes = block_sizes
        self._max_model_len = max_model_len
        self._executor = executor_for(settings.is_local)
        self._plans: dict[str, Plan] = {}
        self._step = Step()

    def add(self, request: Any) -> None:
        """Look up the prompt of a new request; with a local bank, room has been made when this returns."""
        try:
            name = prompt_of(request)
        except PromptRefusedError as error:
            self._plans[request.request_id] = plan = Plan(None)
            self._refuse(request, plan, str(error))
            return
        if name is None:
            return
        self._plans[request.request_id] = plan = Plan(self._executor.submit(self._catalog.find, name))
        if self._settings.is_local:
            self._decide(request, plan)

    def _decide(self, request: Any, plan: Plan) -> None:
        """Make room for the prompt that was found, or record why the request fails."""
        assert plan.coming is not None
        coming, plan.coming = plan.coming, None
        try:
            entry = coming.result()
        except Exception as error:
            self._refuse(request, plan, str(error) if isinstance(error, PromptRefusedError) else repr(error))
            return
        self._give(request, plan, entry)

    def _give(self, request: Any, plan: Plan, entry: zoo.PrefixEntry) -> None:
        """Make room for a prompt, or record why the request fails."""
        problem = problem_of(request) or length_problem(request, entry, self._max_model_len)
        if problem is not None:
            plan.entry = None
            self._refuse(request, plan, problem)
            return
        plan.entry, plan.salt = entry, request.cache_salt
        make_room(request, entry, self._settings)

    def _refuse(self, request: Any, plan: Plan, problem: str) -> None:
        """Make a request end with an error."""
        plan.problem = problem
        request.skip_reading_prefix_cache = False  # otherwise vLLM would not ask, and would run it without the prompt
        logger.error("request %s ends with an error: %s", request.request_id, problem)

    def matched_tokens(self, request: Any, num_computed: int) -> tuple[int | None, bool]:
        """Return how many tokens after the computed ones are loaded, and whether that is asynchronous.

        Returns:
            `None` as the number while the lookup is running, so that vLLM asks again.
        """
        plan = self._plans.get(request.request_id)
        if plan is None:
            return 0, False
        if plan.coming is not None:
            if plan.coming.done():
                self._decide(request, plan)
            return None, False  # vLLM searched its cache for the text only; it searches again with the room in front
        if num_computed == 0 and not request.num_output_tokens:
            self._renew(request, plan)
        if plan.entry is None:
            return 1, True  # a failing load makes the request end with an error
        count = max(0, plan.entry.num_tokens - num_computed)
        return count, count > 0

    def _renew(self, request: Any, plan: Plan) -> None:
        """Give a request of which nothing has been computed its current prompt; it may have waited a long time.

        A remote bank is not asked again, and a prompt that has been deleted is left to the workers, who may still have
        it.
        """
        if plan.entry is None or not self._settings.is_local:
            return
        coming = self._executor.submit(self._catalog.find, plan.entry.name)
        if coming.exception() is None and coming.result().stamp != plan.entry.stamp:
            take_room_back(request, plan.entry, plan.salt)
            self._give(request, plan, coming.result())

    def allocated(self, request: Any, blocks: Any, num_external: int) -> None:
        """Record the blocks that a request got for its prompt."""
        plan = self._plans.get(request.request_id)
        if plan is None or num_external == 0:
            return
        if plan.entry is None:
            self._step.refused.append(request.request_id)
            return
        end = plan.entry.num_tokens
        ids = tuple(
            tuple(None if block.is_null else block.block_id for block in group[: -(-end // size)])
            for group, size in zip(blocks.blocks, self._block_sizes, strict=True)
        )
        load = Load(request.request_id, plan.entry.name, plan.entry.stamp, end - num_external, end, ids)
        self._step.loads.append(load)

    def take_step(self) -> Step:
        """Return what the workers do in this step."""
        step, self._step = self._step, Step()
        return step

    def finish(self, request: Any) -> dict[str, Any] | None:
        """Forget a request, and return which prompt it used, for its response."""
        plan = self._plans.pop(request.request_id, None)
        if plan is None:
            return None
        if plan.entry is None:
            return {KEY: None, "error": plan.problem}
        return {KEY: plan.entry.name, "stamp": plan.entry.stamp, "num_tokens": plan.entry.num_tokens}
