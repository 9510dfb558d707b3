"""What storage and registries share of a cloud: principals, regions, signatures."""
