"""The settings of a run: dataclasses, YAML configurations and the command line.

Other packages use `command_line.parse_arguments` and the dataclasses in `arguments`.
"""
