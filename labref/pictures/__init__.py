"""What people look at: a query among its references, sheets of cells, the map. May import cells."""
