"""Trials on a cluster, through Ray Tune: workers load the model once and run one trial after the other."""

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from softprompt_zoo.errors import StoppedError
from softprompt_zoo.training.comparison.bench import Bench
from softprompt_zoo.training.comparison.trial import Trial

if TYPE_CHECKING:
    from softprompt_zoo.training.comparison.running.runner import Begin, Keep

ADDRESS = "RAY_ADDRESS"
"""Ray's environment variable that names a cluster."""
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Environment variables for Tune: results are stored and shown by this package."""
OBJECT_STORE = 80_000_000
"""Bytes of shared memory for a local Ray, little more than its minimum: trials exchange only a few kilobytes."""


class OnRay:
    """Runs trials on the cluster that RAY_ADDRESS names, or on this machine; a `Runner`."""

    def __init__(self, workers: int | None, tell: Callable[[str], object]) -> None:
        """Set the number of workers.

        Args:
            workers: Maximum number of workers; `None` for one per accelerator, or per processor if there are none.
            tell: Called with a message that says where trials are run.
        """
        self.workers = workers
        self.tell = tell

    def __call__(self, trials: Sequence[Trial], bench: Bench, begin: "Begin", keep: "Keep") -> None:
        """Run trials; failures are reported after all other trials have finished."""
        if not trials:
            return
        with _quiet(), _connected(self.workers) as resources:
            self.tell(f"running on Ray, with {_shown(resources)}")
            failed = _run(trials, bench, keep, self.workers, 1 if resources.get("GPU", 0) else 0)
        if failed:
            raise StoppedError(
                f"{len(failed)} of {len(trials)} trials failed on Ray; the first: {failed[0]}. The others are kept; to "
                "retry the failed ones, run the same command again"
            )


def _run(trials: Sequence[Trial], bench: Bench, keep: "Keep", workers: int | None, gpus: int) -> list[str]:
    """Hand the trials to Tune; return the error messages."""
    from ray import tune

    from softprompt_zoo.training.comparison.running.ray_worker import Keeper, Worker

    settings, keeper = dataclasses.replace(bench.settings, dtype=bench.dtype), Keeper(trials, keep)
    with tempfile.TemporaryDirectory(prefix="softprompt-zoo-ray-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(Worker, settings=settings, choices=bench.choices), {"cpu": 1, "gpu": gpus}
            ),
            param_space={"trial": tune.grid_search([json.dumps(dataclasses.asdict(trial)) for trial in trials])},
            tune_config=tune.TuneConfig(
                reuse_actors=True, max_concurrent_trials=workers, trial_dirname_creator=lambda trial: trial.trial_id
            ),
            run_config=tune.RunConfig(
                storage_path=folder,
                name="trials",
                verbose=0,
                callbacks=[keeper],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        grid = tuner.fit()
    failed = [_last_line(error) for error in grid.errors]
    if keeper.waiting and not failed:  # Tune ends cleanly on Ctrl-C, without reporting it
        raise KeyboardInterrupt
    return failed


@contextlib.contextmanager
def _connected(workers: int | None) -> Iterator[Mapping[str, float]]:
    """Connect to the cluster, or start Ray locally within the block; yield the available resources."""
    import ray

    was_there = ray.is_initialized()
    if not was_there:
        here: dict[str, Any] = {"num_cpus": workers, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if os.environ.get(ADDRESS) else here))
    try:
        yield ray.cluster_resources()
    finally:
        if not was_there:
            ray.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in QUIET}
    os.environ.update(QUIET)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _shown(resources: Mapping[str, float]) -> str:
    counts = {"processors": resources.get("CPU", 0), "accelerators": resources.get("GPU", 0)}
    return ", ".join(f"{count:.0f} {name}" for name, count in counts.items() if count)


def _last_line(error: BaseException) -> str:
    """Return the last line of a worker's error; Ray's errors are whole tracebacks."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
