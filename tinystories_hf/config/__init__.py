"""Every setting of a run, and how it is read: defaults < YAML < command line.

Use `parse_arguments` of `command_line` and the dataclasses of `arguments`.
"""
