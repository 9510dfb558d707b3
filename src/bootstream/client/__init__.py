"""A typed client of the services, over urllib3; it needs no extra.

::

    manager = TemplateManagerClient("http://127.0.0.1:5009", token=token)
    build = manager.start_build("py311", image="docker.io/library/python:3.11-slim")
    for event in manager.events("py311", build.build_id):
        print(event.type)
    print(manager.get_build("py311", build.build_id).state)

Errors are those of the package, as the service raised them. Thread safe.
"""

from __future__ import annotations

from bootstream.client.manager import Build, Event, Template, TemplateManagerClient
from bootstream.client.orchestrator import MadeBuild, OrchestratorClient, Sandbox

__all__ = [
    "Build",
    "Event",
    "MadeBuild",
    "OrchestratorClient",
    "Sandbox",
    "Template",
    "TemplateManagerClient",
]
