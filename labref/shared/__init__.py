"""The shared store: a copy of the cells of several labs, in PostgreSQL with pgvector, that all of them ask.

May import words, errors, files, failpoints, progress and the store's values and distances. It knows no lab's own store:
what a lab publishes is handed in, by `labref.tasks.publishing`.

Schema: `sql/`, applied by `migrations`. Each lab has a role of its own, which writes rows of that lab alone; PostgreSQL
itself sees to that (row-level security).
"""
