"""Find the files of a split and read their stories: text, JSON, CSV, Parquet.

The entry points are `split_files.find_splits` and `text_files.read_stories`.
"""
