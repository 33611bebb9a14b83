"""All SQL of the store: schema, rows, and one module for each group of tables.

May import the store's other rooms but its face, and som.
"""
