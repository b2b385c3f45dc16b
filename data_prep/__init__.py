"""Recipes for named corpora: where each comes from and how it becomes items; `python -m data_prep.NAME`."""
