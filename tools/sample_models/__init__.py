"""Training of the sample's tiny models, on episodes that `hands` draws."""
