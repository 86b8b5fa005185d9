"""A static page on which models tell stories in the browser: its files, and how it is built."""
