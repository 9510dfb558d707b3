"""Object storage behind one interface: ``protocol``; a module for each store and each wrapper.

Stores: ``local`` (files below a folder), ``memory``. Wrappers, providers around a
provider: ``prefix``, ``retry``, ``faults``. What follows from the protocol alone is in
``objects``; ``paths`` judges names. ``bootstream.testing.storage`` is the conformance
suite that every one of them passes.
"""
