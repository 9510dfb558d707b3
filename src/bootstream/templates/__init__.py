"""Templates: built, published, tagged, listed, deleted, collected."""
