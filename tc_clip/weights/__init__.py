"""Weight files: reading, layouts, loading, converting."""
