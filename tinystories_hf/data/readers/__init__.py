"""Find the files of a split, local or on the Hub, and read their stories.

The entry points are `local_files`, `hub_files` and `text_files.read_stories`.
"""
