-- serves 3
-- Questions that mean one group of optics read an index that holds what is compared: cells of one microscope lie on most
-- pages of the table, among those of all others. An entry of an index takes a third of a page at most, and a row a whole
-- one: larger latents stay in the table, and the largest beside it.
CREATE FUNCTION lay_out(number smallint, size integer) RETURNS void LANGUAGE plpgsql
    SET search_path = labref, pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE INDEX cell_%1$s_optics ON cell_%1$s (optics) %2$s WHERE NOT withheld',
        number, CASE WHEN size <= 400 THEN 'INCLUDE (bundle, lab, cell_id, latent)' ELSE '' END);
    IF size > 1800 THEN
        EXECUTE format('ALTER TABLE cell_%s ALTER COLUMN latent SET STORAGE EXTERNAL', number);
    END IF;
END
$$;
REVOKE ALL ON FUNCTION lay_out(smallint, integer) FROM PUBLIC;

-- Labs wait with what they publish, and questions go on: nothing is locked for these before the last statement.
LOCK TABLE cell IN SHARE ROW EXCLUSIVE MODE;
DO $$
BEGIN
    PERFORM lay_out(number, latent_size) FROM bundle;
END
$$;

CREATE OR REPLACE FUNCTION add_bundle(the_digest text, the_name text, the_version text, size integer) RETURNS smallint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = labref, pg_catalog, pg_temp AS $$
DECLARE
    found smallint;
BEGIN
    SELECT number INTO found FROM bundle WHERE digest = the_digest AND latent_size = size;
    IF found IS NOT NULL THEN
        RETURN found;
    END IF;
    IF (SELECT count(*) FROM bundle) >= 1000 THEN
        RAISE EXCEPTION 'there are 1000 bundles already; let the owner drop some';
    END IF;
    INSERT INTO bundle (digest, name, version, latent_size) VALUES (the_digest, the_name, the_version, size)
        RETURNING number INTO found;
    EXECUTE format(
        'CREATE TABLE cell_%s PARTITION OF cell (CONSTRAINT latent_size CHECK (%s.vector_dims(latent) = %s)) FOR VALUES IN (%s)',
        found, '{vector}', size, found);
    PERFORM lay_out(found, size);
    RETURN found;
END
$$;

-- The oldest version whose labref may work with this one; NULL for none but its own. Labs are upgraded one by one.
ALTER TABLE migration ADD COLUMN serves integer;
DROP INDEX cell_optics;
