"""The services: template-manager and orchestrator, over HTTP.

They need the extra ``server``. Everything of the web is here; what they do is the library's.
"""
