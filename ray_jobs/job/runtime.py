"""What every job shares: the command line, logging, the connection to Ray, the experiment's index, and how errors are told."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

import ray
import yaml

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.config import ConfigError, UserError, load
from ray_jobs.job import standing, telemetry
from ray_jobs.job.experiment import Experiment, load_experiment
from ray_jobs.job.index import Index
from ray_jobs.job.journal import Journal
from ray_jobs.job.placement import job_config
from ray_jobs.job.process import configure_process

logger = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's job manager sets it for an entrypoint, and nothing else does
INTERRUPTED = 130  # as a shell has it: 128 + SIGINT
TERMINATED = 143  # 128 + SIGTERM
PREEMPTION_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class ResourcesNotAvailable(UserError):
    """What was asked for did not come within `resources.wait_s`."""

    exit_code = 3


def absolute(path: str) -> str:
    """Return a local path in absolute form, and a URI as it is, without slashes at the end."""
    return (path if "://" in path else str(Path(path).expanduser().absolute())).rstrip("/")


def inside_job() -> bool:
    """Return whether this process is the entrypoint of a submitted Ray job."""
    return JOB_VARIABLE in os.environ


def needed(setting: T | None, name: str, wanted: str) -> T:
    """Return a part of the configuration without which a stage has nothing to do.

    Raises:
        ConfigError: it is null; the message says what to set.
    """
    if setting is None:
        raise ConfigError(f"{name} is null: {wanted}, or leave the stage out")
    return setting


def once(function: F) -> F:
    """Remember a pure function of (context, …) for as long as the context lives: names of artifacts are asked for again and again."""

    @functools.wraps(function)
    def remembered(context: Context, *arguments: Any) -> Any:
        key = (function.__module__, function.__qualname__, arguments)
        if key not in context._known:
            context._known[key] = function(context, *arguments)
        return context._known[key]

    return cast(F, remembered)


@dataclass
class Context:
    """What a stage gets: the experiment, its storage and index, and Ray when it asks for it.

    Attributes:
        corpus: a corpus in place of the experiment's own, where a control derives one.
        suffix: what the names of typings and embeddings over that corpus end with in the index.
        journal: what the job tells of itself in the storage.
        looking: for a plan: a named cluster is asked what it has, and nothing of it or of the storage is changed.
    """

    experiment: Experiment
    config_path: Path
    overrides: tuple[str, ...] = ()
    corpus: Artifact | None = None
    suffix: str = ""
    journal: Journal | None = field(default=None, repr=False)
    looking: bool = False
    _connected: bool = field(default=False, repr=False)
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def storage(self) -> Storage:
        """Return the experiment's storage."""
        return Storage(self.experiment.storage)

    @cached_property
    def index(self) -> Index:
        """Return the experiment's index."""
        return Index(self.storage, self.experiment.experiment)

    @property
    def address(self) -> str | None:
        """Return the address of a named cluster, if one is named."""
        return self.experiment.resources.address or os.environ.get("RAY_ADDRESS")

    @property
    def workers(self) -> int:
        """Return how many tasks of a stage may wait for a core at once: `resources.data_workers`, else the cores there are."""
        return self.experiment.resources.data_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def connect(self) -> None:
        """Connect to Ray once: a named cluster, RAY_ADDRESS, or a Ray of this process's own.

        Raises:
            ResourcesNotAvailable: a Ray of this process's own did not start within the 30 seconds that Ray gives it.
        """
        if self._connected or ray.is_initialized():
            return
        resources, address = self.experiment.resources, self.address
        options: dict[str, Any] = {"address": address} if address else {"address": "local", "num_cpus": resources.num_cpus}
        if not address:
            options["include_dashboard"] = False
            os.environ.setdefault(PREEMPTION_WATCHER, "0")  # an actor of its own for each run; nobody takes this machine away
        logger.info("connecting to %s", address or "a Ray of this process's own")
        try:
            with _kept_termination():
                ray.init(
                    **options,
                    job_config=job_config(self.storage.uri, self.experiment.experiment),
                    logging_level=logging.WARNING,
                    runtime_env={"worker_process_setup_hook": "ray_jobs.job.process.configure_worker"},
                )
        except Exception as error:  # of no class of its own
            if "timed out during startup" not in str(error):
                raise
            raise ResourcesNotAvailable("Ray did not start within 30 s: is this machine busy? Give the same command again") from None
        self._connected = True
        telemetry.flush()
        configure_ray_data()
        if not self.looking:
            standing.withdraw_left_behind()
            self._check_shared_storage()

    def leave(self) -> None:
        """End the work on a cluster that goes on without us, and let it have its nodes back."""
        if self._connected and self.address:
            try:
                standing.end_and_withdraw(self.address)
            except Exception as error:  # the cluster is gone, or going
                logger.warning("what was asked of the autoscaler may stand for some minutes: %s", error)

    def command(self, stage: str) -> str:
        """Return the command line that runs a stage of this very experiment, overrides included, ready for a shell."""
        return shlex.join(["python", "-m", f"ray_jobs.{stage}", str(self.config_path), *self.overrides])

    def require(self, artifact: Artifact, stage: str) -> Artifact:
        """Return a parent artifact that is sealed.

        Raises:
            ArtifactError: it isn't; the message says which command makes it.
        """
        if not artifact.sealed:
            raise ArtifactError(f"{artifact.uri} is not sealed; make it with: {self.command(stage)}")
        return artifact

    def _check_shared_storage(self) -> None:
        """Prove by a probe file that a local storage path is one folder on every node.

        Raises:
            ConfigError: it isn't, or `resources.shared_storage` doesn't say so.
        """
        resources, nodes = self.experiment.resources, [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        has = ray.cluster_resources()
        will_grow = (resources.max_cpus or 0) > has.get("CPU", 0) or (resources.max_gpus or 0) > has.get("GPU", 0)
        if "://" in self.storage.uri or (len(nodes) < 2 and not will_grow):
            return
        if not resources.shared_storage:
            raise ConfigError(
                f"storage {self.storage.uri!r} is a local path and the cluster has {'or will have ' * will_grow}several nodes: "
                "give an object store's URI, or resources.shared_storage=true if every node mounts that folder"
            )
        probe = f".probe-{os.getpid()}"
        self.storage.write_bytes(probe, b"")
        try:
            for node in nodes:
                if not _node_sees(node, self.storage, probe):
                    raise ConfigError(f"node {node} does not see {self.storage.uri}: it is not shared storage")
        finally:
            filesystem, root = self.storage.filesystem()
            filesystem.delete_file(f"{root}/{probe}")


def configure_ray_data() -> None:
    """Make Ray Data quiet where no person watches, and keep its order and errors strict."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = sys.stderr.isatty()
    context.execution_options.preserve_order = True
    context.print_on_execution_start = False


def _node_sees(node: str, storage: Storage, path: str) -> bool:
    """Return whether a node sees a file; a node that an autoscaler has taken meanwhile has nothing to see."""
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
    try:
        return ray.get(ray.remote(num_cpus=0)(_sees).options(scheduling_strategy=strategy).remote(storage, path))
    except ray.exceptions.RayError:
        if node in [one["NodeID"] for one in ray.nodes() if one["Alive"]]:
            raise
        return True


def _sees(storage: Storage, path: str) -> bool:
    return storage.exists(path)


def arguments(stage: str, argv: list[str] | None = None, more: str | None = None) -> argparse.Namespace:
    """Return the parsed command line of a stage; `more` ends its help."""
    parser = argparse.ArgumentParser(prog=f"python -m ray_jobs.{stage}", description=f"Run {stage} of an experiment.", epilog=more)
    parser.add_argument("config", type=Path, help="the experiment's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys with YAML values, e.g. grid.sizes=[1000]")
    looks = "print the resolved config and the plan; a named cluster is asked what it has, and nothing is changed"
    parser.add_argument("--dry-run", action="store_true", help=looks)
    return parser.parse_intermixed_args(argv)


def main(stage: str, argv: list[str] | None = None, more: str | None = None) -> int:
    """Run one stage, or the pipeline, from the command line and return its exit code: 0 only if all is sealed.

    What a person can mend is told in one line; anything else is a fault of ours and keeps its traceback.
    """
    configure_process()
    given = arguments(stage, argv, more)

    contexts: list[Context] = []

    def work() -> None:
        experiment = load_experiment(given.config, given.overrides, inside_job=inside_job())
        context = Context(experiment, given.config, tuple(given.overrides), looking=given.dry_run)
        contexts.append(context)
        if given.dry_run:
            print_plan(context, [stage] if stage != "pipeline" else experiment.stages)
            return
        context.storage.check_writable()
        command = context.command(stage)
        with Journal(context.storage, experiment.experiment, stage, command, user_error) as context.journal:
            run_stage(context, stage)

    terminated = threading.Event()
    try:
        with _terminated_as_an_exception(terminated):
            return exit_code(stage, work)
    except KeyboardInterrupt:
        how, code = "interrupted", INTERRUPTED
    except SystemExit:
        if not terminated.is_set():  # not asked by the code: an exit that passes through Ray's core comes out of it with another one
            raise
        how, code = "ended by SIGTERM", TERMINATED
    print(f"{stage}: {how}; {_sealed_so_far(contexts)}, and the same command goes on", file=sys.stderr)
    for context in contexts:
        context.leave()
    return code


@contextmanager
def _terminated_as_an_exception(terminated: threading.Event) -> Iterator[None]:
    """Have SIGTERM, which `ray job stop`, Kubernetes and batch systems send, clear up as Ctrl-C does; the event says that it came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        terminated.set()
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _kept_termination() -> Iterator[None]:
    """Keep what SIGTERM does, where somebody has said so: `ray.init` puts a handler of its own in the place of any other."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def _sealed_so_far(contexts: Sequence[Context]) -> str:
    """Return what an interrupted command leaves behind, in a few words."""
    entries = contexts[0].index.read() if contexts else {}
    names = [f"{len(value)} {kind}" if isinstance(value, dict) else kind for kind, value in entries.items()]
    return f"sealed are {', '.join(names)}" if names else "nothing is sealed yet"


def exit_code(name: str, work: Callable[[], int | None]) -> int:
    """Do the work and return its exit code; what a person can mend is told in one line, under the command's name."""
    try:
        return work() or 0
    except Exception as error:
        found = user_error(error)
        if found is None:
            raise
        print(f"{name}: {found}", file=sys.stderr)
        return found.exit_code


def tool(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return a decorator for the `main` of a tool: the process is set up, and errors are told as `exit_code` does."""

    def decorate(run: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(run)
        def told(argv: Sequence[str] | None = None) -> int:
            configure_process()
            return exit_code(name, lambda: run(argv))

        return told

    return decorate


def user_error(error: BaseException) -> UserError | None:
    """Return the user's error inside what was raised, looking through Ray's wrappers, or None."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        cause = getattr(following, "cause", None)
        if isinstance(cause, UserError):
            return cause
        if isinstance(following, UserError) and not isinstance(following, ray.exceptions.RayError):
            return following
        following = cause if isinstance(cause, BaseException) else following.__cause__
    return None


def run_stage(context: Context, stage: str) -> None:
    """Run a stage's `run` and say how long it took."""
    run: Callable[[Context], None] = load(f"ray_jobs.{stage}:run")
    started = time.perf_counter()
    if context.journal is not None:
        context.journal.stage = stage
    telemetry.tell("stage_running", 1, stage=stage)
    try:
        run(context)
    finally:
        telemetry.tell("stage_running", 0, stage=stage)
    logger.info("%s: done in %.0f s", stage, time.perf_counter() - started)
    if context.journal is not None:
        context.journal.finished(stage)


def print_plan(context: Context, stages: list[str]) -> None:
    """Print the resolved config, the cells, and each stage's own plan."""
    experiment = context.experiment
    print(yaml.safe_dump(experiment.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True))
    print(f"{len(experiment.cells)} cells: {experiment.cells[0].name} … {experiment.cells[-1].name}")
    for stage in stages:
        print(f"\n{stage}")
        for line in load(f"ray_jobs.{stage}:plan")(context):
            print(f"  {line}")
