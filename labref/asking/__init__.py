"""The answer to a question: references, the cell's place on the map, drift of the optics. May import the lab and
below."""
