"""Which files form a split, and the stories in them: text, JSON, CSV, Parquet.

Use `text_files.read_stories` and `split_files.find_splits`.
"""
