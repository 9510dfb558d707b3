"""Build microVM templates from container images, store them anywhere, stream them lazily."""

__version__ = "0.1.0"
