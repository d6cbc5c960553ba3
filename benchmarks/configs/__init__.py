"""Configs: modules with a function `get_config` that returns a `Config`."""
