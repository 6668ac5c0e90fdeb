"""YAML as the config files speak it."""

import re

import yaml

try:
    from yaml import CSafeLoader as SafeLoader  # libyaml's, some five times as fast
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]


class YamlLoader(SafeLoader):
    """YAML as people write it: `1e-4` is a number, as it is in Python, not a string."""


class YamlDumper(yaml.SafeDumper):
    """The inverse of YamlLoader: strings that it would read as numbers are quoted."""


for _dialect in (YamlLoader, YamlDumper):
    _dialect.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )
