"""The flags of `turnkeeper serve`. Apart from `settings_sources`, whose libraries `--help` does not need."""

import argparse

from turnkeeper.settings import CONFIG_VARIABLE, GROUPS, Settings, choices_of, flag_of, shown, variables_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`, and a flag for each setting, with its variables and its default in the help."""
    group: argparse._ArgumentGroup | argparse.ArgumentParser = parser
    parser.add_argument("--config", metavar="FILE", help=f"TOML file with a key for each setting [{CONFIG_VARIABLE}]")
    for name, field in Settings.model_fields.items():
        if name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        default = shown(field.default)
        variables = " or ".join(variables_of(name))
        help_text = f"{field.description} [{variables}{f'; {default}' if default else ''}]".replace("%", "%%")
        if isinstance(field.default, bool):
            group.add_argument(
                flag_of(name), dest=name, action=argparse.BooleanOptionalAction, default=None, help=help_text
            )
        else:
            choices = choices_of(name)
            metavar = f"{{{','.join(choices)}}}" if choices else name.upper().replace("_", "-")
            group.add_argument(flag_of(name), dest=name, metavar=metavar, help=help_text)
