"""A typed client of the services, over urllib3."""
