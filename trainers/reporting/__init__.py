"""Results of a run: files, tables, charts, pages, model cards."""
