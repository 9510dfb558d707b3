"""Object storage behind one interface: ``protocol``; a module for each store and each wrapper.

Stores: ``local`` (files below a folder), ``memory``, ``oci`` (a data plane of our own), ``aws``,
``gcp`` and ``azure`` (over obstore). Wrappers, providers around a provider: ``prefix``,
``metrics``, ``retry``, ``limit``, ``faults``. What follows from the protocol alone is in
``objects``; ``paths`` judges names, ``url`` reads addresses of stores.
``bootstream.testing.storage`` is the conformance suite that every one of them passes.
"""
