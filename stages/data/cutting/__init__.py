"""Clips cut from the videos of a folder: by the rule, or as the user's own table asks, `--clips FILE`."""
