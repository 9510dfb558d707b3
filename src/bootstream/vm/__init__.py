"""Boots templates in virtual machines, root over NBD.

::

    boot.py      one boot from start to end: initrd, QEMU, what the guest reports, time limit
    accel.py     whether KVM really runs a guest here
    qemu.py      QEMU's command line
    guest.py     what runs in the guest before and beside the template: init scripts
    initrd.py    busybox, modules and scripts as an initial RAM disk
    cpio.py      its archive format
    modules.py   kernel modules, and in which order they load
    kernel.py    kernels: where they are, which version
    firecracker.py  configuration for Firecracker on an attached device
"""
