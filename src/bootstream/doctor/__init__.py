"""What a host can do, and what mends what it cannot: one module for each kind of check.

A check is a function over ``Context`` that yields findings; ``run.examine`` runs many of
them at once, each within a time limit. Nothing here changes the host: what is written to a
bucket or a registry is taken away again.
"""

from __future__ import annotations
