"""Map the top-level folders to `thinkjepa.*`; everything else stands in pyproject.toml.

A plain `cache` in site-packages would clash with other packages and with a user's own folder of that
name. The package list is computed, because a written one silently drops new subpackages from the wheel.
"""

from setuptools import find_packages, setup

ROOTS = ("cache", "stages", "pipeline")

packages = [
    package for root in ROOTS for package in (root, *(f"{root}.{sub}" for sub in find_packages(root)))
]

setup(
    packages=[f"thinkjepa.{package}" for package in packages],
    package_dir={f"thinkjepa.{root}": root for root in ROOTS},
)
