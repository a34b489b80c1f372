"""Where a model is asked: the endpoint that a configuration names, or a server that the job starts on a node with what it needs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from diversity.llm.model import ModelConfig, ServeConfig
from diversity.llm.serving import Server
from ray_jobs.job.runtime import Context

logger = logging.getLogger(__name__)


class ServerActor:
    """Holds the GPUs of a server, and the server, for as long as it lives."""

    def __init__(self, config: ServeConfig, model: str) -> None:
        self._server = Server(config, model, ray.util.get_node_ip_address())

    def url(self) -> str:
        """Return where the server is asked."""
        return self._server.url

    def close(self) -> None:
        """End the server."""
        self._server.close()


@contextmanager
def reached(context: Context, model: ModelConfig) -> Iterator[str | None]:
    """Have a model's base URL: its own, or that of a server which ends when this does; None where only kept answers count.

    Raises:
        ServerError: the server does not come up.
    """
    if model.serve is None or model.base_url is not None:
        yield model.base_url
        return
    context.connect()
    logger.info("%s serve %s: starting", model.serve.engine, model.model)
    actor: Any = ray.remote(num_cpus=model.serve.cpus, num_gpus=model.serve.gpus)(ServerActor).remote(model.serve, model.model)
    try:
        url = ray.get(actor.url.remote())
        logger.info("%s serve %s: answers at %s", model.serve.engine, model.model, url)
        yield url
    finally:
        try:
            ray.get(actor.close.remote())
        except ray.exceptions.RayActorError:
            logger.info("%s serve %s had ended", model.serve.engine, model.model)
        ray.kill(actor)
