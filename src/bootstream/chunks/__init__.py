"""Pack and index: how an artifact is cut, stored and read; see docs/formats/."""
