"""The Container Registry of the local OCI (OCIR): its token service, its registry, its API.

::

    handler.py      which of the three a request is for
    tokens.py       bearer tokens, and the users' auth tokens
    access.py       who asks, and what the policies let them do
    proxy.py        /v2/: the registry's protocol, in front of a real registry
    uploads.py      its blobs and uploads
    operations.py   how requests are named, for faults and counts
    resuming.py     where uploads stand
    artifacts.py    /20160918/container/: the Artifacts API
    listing.py      its listings
    documents.py    its JSON
    catalogue.py    repositories, images and their versions: what the registry is about
    values.py       these as values
    upstream.py     requests to the real registry
    process.py      the real registry: a process that ends with us

The real registry, Debian's ``docker-registry``, keeps blobs and manifests and checks both; it is
asked for manifests by digest only. Which repositories there are, which images they have, and
what their tags name is in the catalogue, a database of ours: a tag moves, goes or is refused in
one transaction, and nothing is cached. A repository has a folder of its own name in the real
registry, so that one that is deleted and made again begins empty.
"""
