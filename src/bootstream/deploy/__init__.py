"""From one settings file to hosts that run the services: files, jobs, and what goes where.

What is written here is pure: settings in, text out. What talks to hosts is ``remote``.
"""

from __future__ import annotations
