"""Hand labels beside videos: reading them, storing them in a cache, saying what is wrong with them."""
