"""NBD: the protocol without sockets, a server of devices, and a small client."""
