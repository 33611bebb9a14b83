-- Questions that mean one group of optics read its cells alone. (Those that mean some labs have the primary key.)
CREATE INDEX cell_optics ON cell (optics);
