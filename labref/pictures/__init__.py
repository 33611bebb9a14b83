"""Pictures for people: a query among its references, sheets of cells, the map. May import cells."""
