"""A local Oracle Cloud: Object Storage, sign-in and metadata, for tests and for development."""
