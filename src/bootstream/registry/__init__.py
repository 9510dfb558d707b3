"""Template images in a cloud's own container registry, behind one interface."""
