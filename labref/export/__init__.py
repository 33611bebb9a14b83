"""The analyser's folder: what lies in it, what changes, what stands still, and what a path says of a cell. May import
config."""
