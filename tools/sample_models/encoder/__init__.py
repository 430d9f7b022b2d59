"""Training of the sample's V-JEPA 2."""
