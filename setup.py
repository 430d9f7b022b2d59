"""Map the top-level folders to `thinkjepa` and `thinkjepa.*`; everything else is in pyproject.toml.

A plain `cache` in site-packages would clash with other packages and with a user's own folder of that
name. `thinkjepa` itself is the folder `package`: a folder `thinkjepa` in the checkout would hide the
installed one from everybody who starts Python there. The package list is computed, because a written one
silently drops new subpackages from the wheel.
"""

from setuptools import find_packages, setup

ROOTS = ("cache", "stages", "pipeline")

packages = [
    package for root in ROOTS for package in (root, *(f"{root}.{sub}" for sub in find_packages(root)))
]

setup(
    packages=["thinkjepa", *(f"thinkjepa.{package}" for package in packages)],
    package_dir={"thinkjepa": "package", **{f"thinkjepa.{root}": root for root in ROOTS}},
)
