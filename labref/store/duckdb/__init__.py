"""All SQL of the store: schema, rows, and one module for each group of tables."""
