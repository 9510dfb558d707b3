"""The kernel's own NBD client: exports as ``/dev/nbdN``, by netlink.

::

    attach.py    negotiate, hand the sockets over, reconnect
    watch.py     keeps a device connected while its server comes and goes
    teardown.py  which devices are ours; detaching, by the owner or after it
    records.py   what is attached, and by whom: a locked file for each attachment
    sysfs.py     what the kernel shows of its devices, and who uses them
    control.py   the netlink socket: one request, one answer; notices of dead connections
    family.py    requests and answers of the family "nbd"; no sockets
    netlink.py   netlink messages: bytes in, values out; no sockets
"""
