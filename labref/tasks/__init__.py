"""Work in the background: jobs, re-embedding, map training, comparing, retention, backup. May import asking and
below."""
