"""Adds the packages to what pyproject.toml says; the configurations and class names become folders of `trainers`."""

from setuptools import find_packages, setup

FOLDERS = {"trainers.configs": "configs", "trainers.labels": "labels"}

setup(
    packages=[*find_packages(include=["tc_clip*", "video_datasets*", "trainers*"]), *FOLDERS],
    package_dir=FOLDERS,
    package_data={"": ["assets/*"], "trainers.configs": ["**/*.yaml"], "trainers.labels": ["**/*.csv", "**/*.md"]},
    # The user's own files.
    exclude_package_data={"trainers.configs": ["local.yaml", "local/*"], "trainers.labels": ["froster/*"]},
)
