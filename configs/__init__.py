"""The settings of a run: one set of names for YAML files and flags.

`load(argv)` reads the defaults, then --config FILE, then the flags. A YAML key is a flag's name, with hyphens or
underscores ("k-start" or "k_start"). An unknown name is an error that says what to type instead. Nothing here imports
torch.
"""

from .catalogue import constant, names
from .command_line import (
    add_settings,
    check_command_line,
    check_known,
    check_names,
    check_resumable,
    load,
    settings_of,
    typed_path,
)
from .config import INIT_WORDS, RESUMABLE, Config, absolute_paths, from_mapping, is_of_a_run, to_yaml
from .errors import OneLineParser, choose, expect, flag_of, one_line, one_line_errors
from .reading import expand_path, parse_pairs, read_yaml
from .schedules import SCHEDULES
from .variants import Variant

__all__ = [
    "INIT_WORDS",
    "RESUMABLE",
    "SCHEDULES",
    "Config",
    "OneLineParser",
    "Variant",
    "absolute_paths",
    "add_settings",
    "check_command_line",
    "check_known",
    "check_names",
    "check_resumable",
    "choose",
    "constant",
    "expand_path",
    "expect",
    "flag_of",
    "from_mapping",
    "is_of_a_run",
    "load",
    "names",
    "one_line",
    "one_line_errors",
    "parse_pairs",
    "read_yaml",
    "settings_of",
    "to_yaml",
    "typed_path",
]
